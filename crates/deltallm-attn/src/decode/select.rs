//! From the scores of a block to weights: which values count, and a step of the online softmax. Keys along the lanes.

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::exp2};

use super::{
    decode_simd::{DecodeSimd, width},
    expand::low_bits,
};

/// The keys of a block whose values count.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Bit `i` is the block's key `i`.
    pub(crate) bits: u64,
    /// The same as numbers, ascending; the first `count` of them.
    numbers: [u8; BLOCK_TOKENS],
    count: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { bits: 0, numbers: [0; BLOCK_TOKENS], count: 0 }
    }
}

impl Kept {
    /// Ascending.
    pub(crate) fn numbers(&self) -> &[u8] {
        &self.numbers[..self.count]
    }

    /// To count from another key than the block's first.
    pub(crate) fn numbers_mut(&mut self) -> &mut [u8] {
        &mut self.numbers[..self.count]
    }
}

/// The state of an online softmax: `[heads]` largest scores and sums of weights, `[heads, channels]` weighted sums of values.
pub(crate) struct Softmax<'a> {
    pub(crate) max: &'a mut [f32],
    pub(crate) total: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
}

/// Moves the scores of the keys that count to the front of `weights` (both are `[heads, BLOCK_TOKENS]`), makes weights of them, and
/// brings `state` up to date. Bit `i` of `candidates`, of which there is one, is key `i`; with `thresholds` a value counts if its score
/// is above that of any head.
pub(crate) fn select(
    isa: Isa,
    scores: &[f32],
    candidates: u64,
    thresholds: Option<&[f32]>,
    weights: &mut [f32],
    state: &mut Softmax,
    kept: &mut Kept,
) {
    dispatch!(isa, simd => select_block(simd, scores, candidates, thresholds, weights, state, kept));
}

#[inline(always)]
fn select_block<S: DecodeSimd>(
    simd: S,
    scores: &[f32],
    candidates: u64,
    thresholds: Option<&[f32]>,
    weights: &mut [f32],
    state: &mut Softmax,
    kept: &mut Kept,
) {
    let bits = candidates & thresholds.map_or(u64::MAX, |thresholds| above_any(simd, scores, thresholds));
    let count = bits.count_ones() as usize;
    (kept.bits, kept.count) = (bits, count);
    if count > 0 {
        simd.numbers(bits, &mut kept.numbers);
        let channels = state.sums.len() / state.max.len();
        // All stores first, then all loads: a load that spans several recent stores waits for them.
        for (scores, weights) in scores.chunks_exact(BLOCK_TOKENS).zip(weights.chunks_exact_mut(BLOCK_TOKENS))
        {
            pack(simd, scores, bits, weights);
        }
        let heads = state.max.iter_mut().zip(&mut *state.total).zip(state.sums.chunks_exact_mut(channels));
        for (weights, ((max, total), sums)) in weights.chunks_exact_mut(BLOCK_TOKENS).zip(heads) {
            update(simd, &mut weights[..count.next_multiple_of(width::<S>())], max, total, sums);
        }
    }
}

/// Bit `i` is set where any head's score is not below or at its threshold: also where it is NaN, which must not go unnoticed.
#[inline(always)]
fn above_any<S: DecodeSimd>(simd: S, scores: &[f32], thresholds: &[f32]) -> u64 {
    let mut bits = 0;
    for first in (0..BLOCK_TOKENS).step_by(width::<S>()) {
        let mut below = <S::f32s as SimdBase<S>>::Mask::splat(simd, true);
        for (scores, threshold) in scores.chunks_exact(BLOCK_TOKENS).zip(thresholds) {
            below &= S::f32s::from_slice(simd, &scores[first..first + width::<S>()]).simd_le(*threshold);
        }
        bits |= (!below.to_bitmask() & low_bits(width::<S>())) << first;
    }
    bits
}

/// The scores whose bits are set, one after the other, and -inf up to a whole vector.
#[inline(always)]
fn pack<S: DecodeSimd>(simd: S, scores: &[f32], bits: u64, packed: &mut [f32]) {
    let fill = S::f32s::splat(simd, f32::NEG_INFINITY);
    let mut count = 0;
    for (i, score) in scores.chunks_exact(width::<S>()).enumerate() {
        let here = bits >> (i * width::<S>()) & low_bits(width::<S>());
        let mask = <S::f32s as SimdBase<S>>::Mask::from_bitmask(simd, here);
        // Never beyond the end: what has been packed is no more than what has been looked at.
        S::f32s::from_slice(simd, score)
            .compress_merge(mask, fill)
            .store_slice(&mut packed[count..count + width::<S>()]);
        count += here.count_ones() as usize;
    }
    // The last store has filled up its own vector and perhaps not the one that `count` stands in.
    match packed.get_mut(count..count + width::<S>()) {
        Some(rest) => fill.store_slice(rest),
        None => packed[count..].iter_mut().for_each(|slot| *slot = f32::NEG_INFINITY),
    }
}

/// Turns scores in units of ln 2 into weights `2^(score - max)`, where `max` is the largest score so far, adds them to `total` and brings
/// `total` and `sums` to the new maximum (Milakov and Gimelshein, arXiv 1805.02867). The length of `scores` is a
/// multiple of the vector length; scores of -inf get the weight zero.
#[inline(always)]
fn update<S: DecodeSimd>(simd: S, scores: &mut [f32], max: &mut f32, total: &mut f32, sums: &mut [f32]) {
    let mut best = S::f32s::splat(simd, *max);
    for score in scores.chunks_exact(width::<S>()) {
        best = best.max(S::f32s::from_slice(simd, score));
    }
    // Seldom, but in the first blocks.
    if !best.simd_le(*max).all_true() {
        raise(simd, best.reduce_max(), max, total, sums);
    }
    // A finite reference where everything so far is masked: -inf - (-inf) would be NaN.
    let reference = max.max(f32::MIN);
    let mut more = S::f32s::splat(simd, 0.0);
    for score in scores.chunks_exact_mut(width::<S>()) {
        let weight = exp2(simd, S::f32s::from_slice(simd, score) - reference);
        weight.store_slice(score);
        more += weight;
    }
    *total += more.reduce_sum();
}

/// Brings `total` and `sums` from one maximum to a larger one.
#[inline(always)]
fn raise<S: DecodeSimd>(simd: S, best: f32, max: &mut f32, total: &mut f32, sums: &mut [f32]) {
    let factor = exp2(simd, S::f32s::splat(simd, *max - best.max(f32::MIN)));
    *total *= factor.as_slice()[0];
    for sum in sums.chunks_exact_mut(width::<S>()) {
        (S::f32s::from_slice(simd, sum) * factor).store_slice(sum);
    }
    *max = best;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of two heads, the keys kept of `tokens`, and the state after that.
    fn selected(isa: Isa, scores: &[f32], tokens: u64, thresholds: Option<&[f32]>) -> (Kept, Vec<f32>) {
        let (mut weights, mut kept) = (vec![0.0; 2 * BLOCK_TOKENS], Kept::default());
        let (mut max, mut total, mut sums) = ([0.0; 2], [0.0; 2], [0.0; 32]);
        let mut state = Softmax { max: &mut max, total: &mut total, sums: &mut sums };
        select(isa, scores, tokens, thresholds, &mut weights, &mut state, &mut kept);
        (kept, total.to_vec())
    }

    #[test]
    fn a_key_is_kept_if_any_head_has_it_above_its_threshold_or_not_a_number() {
        for isa in Isa::available() {
            let mut scores = [-9.0; 2 * BLOCK_TOKENS];
            for (head, key, score) in [(0, 3, -1.0), (1, 17, -2.0), (0, 40, f32::NAN), (1, 63, 0.0)] {
                scores[head * BLOCK_TOKENS + key] = score;
            }
            let (kept, total) = selected(isa, &scores, u64::MAX, Some(&[-5.0, -5.0]));
            assert_eq!(kept.numbers(), [3, 17, 40, 63], "{isa}");
            assert!(total[0].is_nan() && !total[1].is_nan(), "{isa}: {total:?}");
            // Beyond the last token there is nothing, whatever stands there.
            let (kept, _) = selected(isa, &scores, (1 << 17) - 1, Some(&[-5.0, -5.0]));
            assert_eq!((kept.numbers(), kept.bits), (&[3][..], 1 << 3), "{isa}");
            assert!(selected(isa, &scores, 7, Some(&[-5.0, -5.0])).0.numbers().is_empty(), "{isa}");
        }
    }

    #[test]
    fn a_score_at_the_threshold_does_not_count() {
        for isa in Isa::available() {
            let mut scores = [-5.0; 2 * BLOCK_TOKENS];
            scores[BLOCK_TOKENS + 9] = -4.9;
            assert_eq!(selected(isa, &scores, u64::MAX, Some(&[-5.0, -5.0])).0.numbers(), [9], "{isa}");
        }
    }

    /// Also where they end within a vector that an earlier block has left scores in.
    #[test]
    fn weights_of_keys_at_any_places_add_up() {
        let mut random = deltallm_testing::Random::new(1);
        let places = (0..500).map(|_| random.bits() & random.bits());
        for bits in places.chain([0xfffe_0000_0000_001f, 0xffff_0000_0000_0001]).filter(|bits| *bits != 0) {
            for isa in Isa::available() {
                let (kept, total) = selected(isa, &[-1.0; 2 * BLOCK_TOKENS], bits, None);
                assert_eq!(kept.bits, bits);
                let expected = 0.5 * bits.count_ones() as f32;
                assert!(total.iter().all(|sum| (sum - expected).abs() < 1e-4), "{isa}: {bits:x}, {total:?}");
            }
        }
    }

    #[test]
    fn a_head_that_has_seen_nothing_but_minus_infinity_has_no_weight() {
        for isa in Isa::available() {
            let mut scores = [-1.0; 2 * BLOCK_TOKENS];
            scores[BLOCK_TOKENS..].fill(f32::NEG_INFINITY);
            let (mut weights, mut kept) = (vec![0.0; 2 * BLOCK_TOKENS], Kept::default());
            let (mut max, mut total, mut sums) = ([f32::NEG_INFINITY; 2], [0.0; 2], [0.0; 32]);
            let mut state = Softmax { max: &mut max, total: &mut total, sums: &mut sums };
            select(isa, &scores, u64::MAX, None, &mut weights, &mut state, &mut kept);
            assert!((total[0] - 64.0).abs() < 1e-3 && total[1] == 0.0, "{isa}: {total:?}");
        }
    }

    #[test]
    fn weights_of_any_number_of_keys_add_up() {
        for isa in Isa::available() {
            for count in 1..=BLOCK_TOKENS {
                let (kept, total) =
                    selected(isa, &[-1.0; 2 * BLOCK_TOKENS], u64::MAX >> (BLOCK_TOKENS - count), None);
                assert_eq!(kept.numbers().len(), count);
                assert!((total[0] - 0.5 * count as f32).abs() < 1e-4, "{isa}: {count} keys, {total:?}");
            }
        }
    }
}
