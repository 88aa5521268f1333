//! The exponential function on vectors.

use fearless_simd::prelude::*;

/// `e^x` for `x <= 88`, with a relative error below 2e-7; zero below -88 (also for -inf); NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, a polynomial of degree 7 for `e^r` (the coefficients of Cephes' `expf`) and
/// `2^n` put together from its bits.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let constant = |value: f32| S::f32s::splat(simd, value);
    // A comparison and not `max`: it lets NaN pass. At the lower limit 2^n comes out as zero.
    let x = x.simd_lt(-88.0).select(constant(-88.0), x);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    // ln 2 in two parts, the first with few enough bits for an exact product.
    let r = n.mul_add(constant(2.121_944_4e-4), n.mul_add(constant(-0.693_359_4), x));
    let mut p = constant(1.987_569_1e-4);
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, constant(coefficient));
    }
    let y = (p * r).mul_add(r, r) + 1.0;
    let exponent = n.to_int::<S::i32s>() + 127;
    y * (exponent << 23).bitcast::<S::f32s>()
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::simd::SimdLevel;

    #[inline(always)]
    fn exp_one<S: Simd>(simd: S, x: f32) -> f32 {
        exp(simd, S::f32s::splat(simd, x)).as_slice()[0]
    }

    #[test]
    fn agrees_with_f64_at_every_level() {
        for level in SimdLevel::available() {
            let mut x = -87.0_f32;
            while x <= 88.0 {
                let got = f64::from(dispatch!(level.level, simd => exp_one(simd, x)));
                let expected = f64::from(x).exp();
                assert!(
                    (got / expected - 1.0).abs() < 2e-7,
                    "{level}: exp({x}) = {got}, expected {expected}"
                );
                x += 0.003_7;
            }
            for (x, expected) in [(f32::NEG_INFINITY, 0.0), (-1e30, 0.0), (-88.5, 0.0), (0.0, 1.0)] {
                assert_eq!(dispatch!(level.level, simd => exp_one(simd, x)), expected, "{level}: exp({x})");
            }
            assert!(dispatch!(level.level, simd => exp_one(simd, f32::NAN)).is_nan(), "{level}");
        }
    }
}
