//! One step of the online softmax over the scores of a block, keys along the lanes.

use fearless_simd::prelude::*;

use super::{lanes::Lanes, rows::lanes};
use crate::simd::exp::exp2;

/// Turns scores in units of ln 2 into weights `2^(score - max)`, where `max` is the largest score so far, adds them to `total` and brings
/// `total` and `sums` to the new maximum (Milakov and Gimelshein, arXiv 1805.02867). The length of `scores` is a
/// multiple of the vector length; scores of -inf get the weight zero.
#[inline(always)]
pub(super) fn update<S: Lanes>(
    simd: S,
    scores: &mut [f32],
    max: &mut f32,
    total: &mut f32,
    sums: &mut [f32],
) {
    let mut best = S::f32s::splat(simd, *max);
    for score in scores.chunks_exact(lanes::<S>()) {
        best = best.max(S::f32s::from_slice(simd, score));
    }
    let best = best.reduce_max();
    // A finite reference where everything so far is masked: -inf - (-inf) would be NaN.
    let reference = best.max(f32::MIN);
    if best != *max {
        let factor = exp2(simd, S::f32s::splat(simd, *max - reference));
        *total *= factor.as_slice()[0];
        for sum in sums.chunks_exact_mut(lanes::<S>()) {
            (S::f32s::from_slice(simd, sum) * factor).store_slice(sum);
        }
        *max = best;
    }
    let mut more = S::f32s::splat(simd, 0.0);
    for score in scores.chunks_exact_mut(lanes::<S>()) {
        let weight = exp2(simd, S::f32s::from_slice(simd, score) - reference);
        weight.store_slice(score);
        more += weight;
    }
    *total += more.reduce_sum();
}

/// Bit `i` is set where a score is not below or at its threshold: also where it is NaN, which must not go unnoticed.
#[inline(always)]
pub(super) fn above<S: Lanes>(simd: S, scores: &[f32], threshold: f32) -> u64 {
    let mut bits = 0;
    for (i, score) in scores.chunks_exact(lanes::<S>()).enumerate() {
        let below = S::f32s::from_slice(simd, score).simd_le(threshold).to_bitmask();
        bits |= (!below & (u64::MAX >> (64 - lanes::<S>()))) << (i * lanes::<S>());
    }
    bits
}
