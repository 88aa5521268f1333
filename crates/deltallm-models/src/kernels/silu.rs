//! The activation of Llama's MLP, for all vectors that the CPU has.
#![allow(unsafe_code, reason = "functions that need instructions to be there")]

use deltallm_attn::SimdLevel;

/// `gate[i] = silu(gate[i]) * up[i]`, with `silu(x) = x / (1 + exp(-x))`. Every level gets the same bits; they differ from the
/// exact result by a few units in the last place.
pub(crate) fn silu_times(gate: &mut [f32], up: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(gate: &mut [f32], up: &[f32]) {
            all(gate, up);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(gate: &mut [f32], up: &[f32]) {
            all(gate, up);
        }
        let level = SimdLevel::from_env().unwrap_or_else(|_| SimdLevel::best());
        if level.name() == "avx512" && is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions were detected.
            return unsafe { avx512(gate, up) };
        }
        if level.name() != "scalar" && is_x86_feature_detected!("avx2") {
            // SAFETY: the instructions were detected.
            return unsafe { avx2(gate, up) };
        }
    }
    all(gate, up);
}

#[inline(always)]
fn all(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// `exp(x)`, of the nearer end for `x` outside of -87..=87. The reduction to `|r| <= ln 2 / 2` and the polynomial are those of
/// Cephes (`expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: added to a small number it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // NaN stays NaN.
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    // ln 2 in two parts, the first of few bits.
    let r = (x - power * 0.693_359_4) + power * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    // 2^power, of which the exponent's field is made: power + 127 at bit 23.
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_product_is_that_of_f64() {
        let x: Vec<f32> =
            (-200_000..=200_000).map(|i| i as f32 * 5e-4).chain([0.0, -0.0, 1e-30, -1e30]).collect();
        let (mut gate, up) = (x.clone(), vec![1.5; x.len()]);
        silu_times(&mut gate, &up);
        for (x, y) in x.iter().zip(gate) {
            let exact = f64::from(*x) / (1.0 + (-f64::from(*x)).exp()) * 1.5;
            // Below -87 the exact value goes on towards 0.
            let error = (f64::from(y) - exact).abs();
            assert!(error <= 1e-6 * exact.abs() + 3e-36 * f64::from(x.abs()), "{x}: {y} {exact}");
        }
    }

    #[test]
    fn numbers_that_are_not_finite_stay_so() {
        let mut gate = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
        silu_times(&mut gate, &[1.0, 1.0, 1.0, f32::NAN]);
        assert!(gate.iter().all(|x| !x.is_finite()), "{gate:?}");
    }
}
