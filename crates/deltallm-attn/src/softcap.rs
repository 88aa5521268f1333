//! A cap on scores, as Gemma 2 has it.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::exp2};

/// `score = cap * tanh(score / cap)`, from nats to units of ln 2.
pub(crate) fn softcap(isa: Isa, scores: &mut [f32], cap: f32) {
    dispatch!(isa, simd => capped(simd, scores, cap));
}

#[inline(always)]
fn capped<S: Simd>(simd: S, scores: &mut [f32], cap: f32) {
    use std::f32::consts::LOG2_E;

    for x in scores.chunks_exact_mut(S::f32s::LEN) {
        // tanh(y) = 1 - 2 / (e^2y + 1); beyond 20 it is 1 in f32, and e^40 is still far from overflow.
        let y = S::f32s::from_slice(simd, x) * (1.0 / cap);
        let y = y.simd_gt(20.0).select(S::f32s::splat(simd, 20.0), y);
        let tanh =
            S::f32s::splat(simd, 1.0) - S::f32s::splat(simd, 2.0) / (exp2(simd, y * (2.0 * LOG2_E)) + 1.0);
        (tanh * (cap * LOG2_E)).store_slice(x);
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LOG2_E;

    use super::*;

    #[test]
    fn scores_far_beyond_the_cap_come_out_as_the_cap() {
        for isa in Isa::available() {
            for score in [0.0, 1.0, -5.0, 59.0, 61.0, 132.0, -132.0, 1e6, 1e30, -1e30, f32::MAX] {
                let mut scores = [score; 16];
                softcap(isa, &mut scores, 3.0);
                let expected = 3.0 * (f64::from(score) / 3.0).tanh() * LOG2_E;
                assert!(
                    scores.iter().all(|x| (f64::from(*x) - expected).abs() < 1e-5),
                    "{isa} {score}: {scores:?}"
                );
            }
        }
    }
}
