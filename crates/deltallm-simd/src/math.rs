//! Functions of vectors.

use fearless_simd::prelude::*;

/// `2^x` for `x <= 127`, with a relative error below 3e-7; zero below -126 (also for -inf); NaN stays NaN.
///
/// The softmax works in base 2: with log2(e) folded into the queries, `e^(s - max)` is `2^x`, and the reduction
/// `x = n + f`, `|f| <= 1/2`, is exact. `2^f` is the minimax polynomial of degree 5 for the relative error on that
/// interval (Remez' algorithm), and `2^n` goes into the exponent's bits.
#[inline(always)]
pub fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let constant = |value: f32| S::f32s::splat(simd, value);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    let magic = constant(ROUND);
    let shifted = x + magic;
    let f = x - (shifted - magic);
    let mut p = constant(1.327_647_2e-3);
    for coefficient in [9.675_541e-3, 5.550_713e-2, 2.402_212e-1, 6.931_469_4e-1, 1.000_000_1] {
        p = p.mul_add(f, constant(coefficient));
    }
    let power: S::i32s = (shifted.bitcast::<S::i32s>() + 127) << 23;
    // A comparison and not `max`: it lets NaN pass.
    x.simd_lt(-126.0).select(constant(0.0), p * power.bitcast::<S::f32s>())
}

/// 1.5 * 2^23: added to a number below 2^22 in magnitude it leaves the nearest integer, half to even, in the low bits.
pub const ROUND: f32 = 12_582_912.0;

/// The integer nearest to `x`, whose magnitude is below 2^22, in the low bits, half to even; anything for NaN. Unlike `round` it needs no
/// instruction beyond SSE2.
#[inline(always)]
pub fn nearest_bits(x: f32) -> u32 {
    (x + ROUND).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, dispatch};

    #[inline(always)]
    fn one<S: Simd>(simd: S, x: f32) -> f32 {
        exp2(simd, S::f32s::splat(simd, x)).as_slice()[0]
    }

    #[test]
    fn agrees_with_f64_for_every_instruction_set() {
        for isa in Isa::available() {
            let mut x = -125.99_f32;
            while x <= 127.0 {
                let got = f64::from(dispatch!(isa, simd => one(simd, x)));
                let expected = f64::from(x).exp2();
                assert!((got / expected - 1.0).abs() < 3e-7, "{isa}: 2^{x} = {got}, expected {expected}");
                x += 0.003_7;
            }
            for (x, expected) in [(f32::NEG_INFINITY, 0.0), (-1e30, 0.0), (-126.5, 0.0)] {
                assert_eq!(dispatch!(isa, simd => one(simd, x)), expected, "{isa}: 2^{x}");
            }
            assert!(dispatch!(isa, simd => one(simd, f32::NAN)).is_nan(), "{isa}");
        }
    }
}
