//! The largest rate of f32 multiply-adds that this machine reaches, at one SIMD level.

use std::hint::black_box;
use std::time::{Duration, Instant};

use deltallm::SimdLevel;
use fearless_simd::{Level, dispatch, prelude::*};

/// Independent chains: more than latency times throughput of any CPU asks for, and no more than its registers hold.
const CHAINS: usize = 12;
/// Multiply-adds of every chain between two looks at the clock.
const STEPS: usize = 20_000;
/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(10);

/// Measures the peak, again and again as the machine's speed wanders.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    level: Level,
    threads: usize,
}

impl Peak {
    /// The peak of `threads` threads of the global rayon pool.
    pub fn new(level: SimdLevel, threads: usize) -> Self {
        let detected = Level::new();
        let level = match level.name() {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            "avx512" => detected.as_avx512().map(|token| token.level()),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            "avx2" => detected.as_avx2().map(|token| token.level()),
            #[cfg(target_arch = "aarch64")]
            "neon" => detected.as_neon().map(|token| token.level()),
            _ => None,
        };
        Self { level: level.unwrap_or_else(Level::fallback), threads }
    }

    /// Multiply-adds in a second, all threads together, each at its own pace.
    pub fn measure(&self) -> f64 {
        match self.threads {
            1 => self.one_thread(),
            _ => rayon::broadcast(|_| self.one_thread()).into_iter().sum(),
        }
    }

    fn one_thread(&self) -> f64 {
        let (start, mut done) = (Instant::now(), 0);
        loop {
            done += dispatch!(self.level, simd => burst(simd));
            let elapsed = start.elapsed();
            if elapsed >= TIME {
                return done as f64 / elapsed.as_secs_f64();
            }
        }
    }
}

/// Returns the multiply-adds it has done. `x <- x / 2 + 1/2` stays near one, far from denormals and infinities.
#[inline(always)]
fn burst<S: Simd>(simd: S) -> usize {
    let half = S::f32s::splat(simd, black_box(0.5));
    let mut chains = [S::f32s::splat(simd, black_box(1.25)); CHAINS];
    for _ in 0..STEPS {
        for x in &mut chains {
            *x = x.mul_add(half, half);
        }
    }
    black_box(chains);
    CHAINS * STEPS * S::f32s::LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_a_peak() {
        for level in SimdLevel::available() {
            let peak = Peak::new(level, 1).measure();
            assert!(peak > 1e8, "{level}: {peak}");
        }
    }
}
