//! The online softmax over tiles of scores, lane by lane.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::exp2};

/// Turns a block of scores `[rows, lanes]`, in units of ln 2, into weights `2^(score - max)`, where `max` is each lane's largest score so
/// far, and holds the state of the online softmax (Milakov and Gimelshein, arXiv 1805.02867): `max` and `sum` are
/// updated, and `rescale` (all `[lanes]`) is what earlier sums and outputs must be multiplied by. Returns whether any
/// lane's factor differs from one.
///
/// Scores of -inf are masked: their weight is zero. A lane that has seen nothing else keeps `max = -inf, sum = 0`.
pub(crate) fn update(
    isa: Isa,
    scores: &mut [f32],
    lanes: usize,
    max: &mut [f32],
    sum: &mut [f32],
    rescale: &mut [f32],
) -> bool {
    dispatch!(isa, simd => weights(simd, scores, lanes, max, sum, rescale))
}

/// `rows[..][lane] *= factors[lane]`.
pub(crate) fn rescale(isa: Isa, rows: &mut [f32], factors: &[f32]) {
    dispatch!(isa, simd => times(simd, rows, factors));
}

/// Sets the scores to -inf of the rows outside of `starts[lane]..ends[lane]`.
pub(crate) fn mask(isa: Isa, scores: &mut [f32], starts: &[f32], ends: &[f32]) {
    dispatch!(isa, simd => masked(simd, scores, starts, ends));
}

/// Moves the rows of scores that are above the threshold (`[lanes]`) of any lane to the front; `kept` becomes their numbers.
pub(crate) fn keep_above(isa: Isa, scores: &mut [f32], thresholds: &[f32], kept: &mut Vec<usize>) {
    kept.clear();
    dispatch!(isa, simd => append_above(simd, scores, thresholds, 0, kept));
}

#[inline(always)]
fn weights<S: Simd>(
    simd: S,
    scores: &mut [f32],
    lanes: usize,
    max: &mut [f32],
    sum: &mut [f32],
    rescale: &mut [f32],
) -> bool {
    let width = S::f32s::LEN;
    let mut changed = false;
    for lane in (0..lanes).step_by(width) {
        let columns = lane..lane + width;
        let old = S::f32s::from_slice(simd, &max[columns.clone()]);
        let mut new = old;
        for row in scores.chunks_exact(lanes) {
            new = new.max(S::f32s::from_slice(simd, &row[columns.clone()]));
        }
        // A finite reference for lanes in which everything is masked: -inf - (-inf) would be NaN.
        let reference = new.max(f32::MIN);
        let factor = exp2(simd, old - reference);
        let mut total = S::f32s::from_slice(simd, &sum[columns.clone()]) * factor;
        for row in scores.chunks_exact_mut(lanes) {
            let row = &mut row[columns.clone()];
            let weight = exp2(simd, S::f32s::from_slice(simd, row) - reference);
            weight.store_slice(row);
            total += weight;
        }
        changed |= new.simd_ne(old).any_true();
        new.store_slice(&mut max[columns.clone()]);
        total.store_slice(&mut sum[columns.clone()]);
        factor.store_slice(&mut rescale[columns]);
    }
    changed
}

#[inline(always)]
fn times<S: Simd>(simd: S, rows: &mut [f32], factors: &[f32]) {
    let width = S::f32s::LEN;
    for row in rows.chunks_exact_mut(factors.len()) {
        for (x, factor) in row.chunks_exact_mut(width).zip(factors.chunks_exact(width)) {
            (S::f32s::from_slice(simd, x) * S::f32s::from_slice(simd, factor)).store_slice(x);
        }
    }
}

#[inline(always)]
fn masked<S: Simd>(simd: S, scores: &mut [f32], starts: &[f32], ends: &[f32]) {
    let width = S::f32s::LEN;
    let hidden = S::f32s::splat(simd, f32::NEG_INFINITY);
    for (row, scores) in scores.chunks_exact_mut(starts.len()).enumerate() {
        let row = S::f32s::splat(simd, row as f32);
        let bounds = starts.chunks_exact(width).zip(ends.chunks_exact(width));
        for (x, (start, end)) in scores.chunks_exact_mut(width).zip(bounds) {
            let seen =
                row.simd_ge(S::f32s::from_slice(simd, start)) & row.simd_lt(S::f32s::from_slice(simd, end));
            seen.select(S::f32s::from_slice(simd, x), hidden).store_slice(x);
        }
    }
}

/// Moves the rows of scores that are above the threshold in any lane to the front, and appends their numbers to `kept`,
/// counted from `first`.
#[inline(always)]
pub(crate) fn append_above<S: Simd>(
    simd: S,
    scores: &mut [f32],
    thresholds: &[f32],
    first: usize,
    kept: &mut Vec<usize>,
) {
    let (width, lanes, mut count) = (S::f32s::LEN, thresholds.len(), 0);
    for row in 0..scores.len() / lanes {
        let start = row * lanes;
        let mut vectors = scores[start..][..lanes].chunks_exact(width).zip(thresholds.chunks_exact(width));
        // `!(score <= limit)` and not `score > limit`: NaN is kept and ends in `Overflow`.
        let keep = vectors.any(|(x, threshold)| {
            !S::f32s::from_slice(simd, x).simd_le(S::f32s::from_slice(simd, threshold)).all_true()
        });
        if keep {
            if count < row {
                scores.copy_within(start..start + lanes, count * lanes);
            }
            count += 1;
            kept.push(first + row);
        }
    }
}

/// Whether a score is to be kept: `!(score <= threshold)` and not `score > threshold`, so NaN is kept and ends in
/// [`Overflow`](crate::AttentionError::Overflow).
#[inline(always)]
#[expect(clippy::neg_cmp_op_on_partial_ord, reason = "the answer for NaN is the point")]
pub(crate) fn above(score: f32, threshold: f32) -> bool {
    !(score <= threshold)
}
