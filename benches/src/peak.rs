//! The largest rate of f32 multiply-adds that this machine reaches, with one instruction set.

use std::hint::black_box;
use std::time::{Duration, Instant};

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

/// Independent chains: more than latency times throughput of any CPU asks for, and no more than its registers hold.
const CHAINS: usize = 12;
/// Multiply-adds of every chain between two looks at the clock.
const STEPS: usize = 20_000;
/// How long a measurement takes.
const TIME: Duration = Duration::from_millis(10);

/// Measures the peak, again and again as the machine's speed wanders.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    isa: Isa,
    threads: usize,
}

impl Peak {
    /// The peak of `threads` threads of the global rayon pool.
    pub fn new(isa: Isa, threads: usize) -> Self {
        Self { isa, threads }
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
            done += dispatch!(self.isa, simd => burst(simd));
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
        for isa in Isa::available() {
            let peak = Peak::new(isa, 1).measure();
            assert!(peak > 1e8, "{isa}: {peak}");
        }
    }
}
