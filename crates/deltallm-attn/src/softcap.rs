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
