//! Scores of a block of keys, in whatever form it is stored.

use std::ops::Range;

use deltallm_core::{
    BLOCK_TOKENS,
    internal::{DeltaBlock, DeltaCodes, Escape, FloatCodes, FloatRows, Int4Rows, StepCodes, StoredRows},
};
use deltallm_simd::{Isa, dispatch};
use half::{bf16, f16, slice::HalfBitsSliceExt};

use super::{
    ahead::{Ahead, block_memory, rows_memory},
    decode_simd::{DecodeSimd, ToScore},
    expand::Masked,
    passes::in_passes,
    queries::{CodedQueries, MOST_SUMMED_CHANNELS},
    row_scores::RowScores,
    rows::{Int4Kernel, Int8Kernel, Number, VectorRows, scales_to_f32},
    scratch::KernelScratch,
};

/// The scores of one block of keys, `[group, BLOCK_TOKENS]`, and the queries they are for.
pub(crate) struct Scoring<'a> {
    /// Scaled queries of the group, `[group, channels]`, padded with zeros to a multiple of [`CHANNELS`](crate::segment::CHANNELS).
    pub(crate) queries: &'a [f32],
    /// Padded channels.
    pub(crate) channels: usize,
    /// The scores.
    pub(crate) scores: &'a mut [f32],
}

/// Scores of `count` rows, the first of which is the block's key `at`. The memory of the rows `ahead` is asked for.
pub(crate) fn scores(
    isa: Isa,
    rows: StoredRows,
    ahead: Option<StoredRows>,
    count: usize,
    at: usize,
    to: &mut Scoring,
    scratch: &mut KernelScratch,
) {
    let KernelScratch { scales, coded, .. } = scratch;
    let (queries, channels, out) = (to.queries, to.channels, &mut to.scores[at..]);
    let memory = ahead.map_or([Ahead::default(); 2], |rows| rows_memory(rows, channels));
    let ahead = memory[0];
    match rows {
        StoredRows::F32(rows) => score_rows(isa, RowScores { rows, count, ahead, queries, channels, out }),
        StoredRows::F16(rows) => score_rows(isa, RowScores { rows, count, ahead, queries, channels, out }),
        StoredRows::Bf16(rows) => score_rows(isa, RowScores { rows, count, ahead, queries, channels, out }),
        StoredRows::Int8(rows) => {
            if channels <= MOST_SUMMED_CHANNELS {
                prepare_queries(isa, coded, queries, channels, &[], 1.0);
                let to = ToScore { queries: coded, channels, skip: 0, ahead: memory, out };
                if dispatch!(isa, simd => simd.int8_scores(rows, count, to)) {
                    return add_center(rows.center, queries, channels, count, out);
                }
            }
            let codes = Int8Kernel { codes: rows.codes, scales: to_f32(isa, rows.scales, scales) };
            score_rows(isa, RowScores { rows: codes, count, ahead, queries, channels, out });
            add_center(rows.center, queries, channels, count, out);
        }
        StoredRows::Int4(Int4Rows { codes, scales: stored }) => {
            let rows = Int4Kernel { codes, scales: to_f32(isa, stored, scales) };
            score_rows(isa, RowScores { rows, count, ahead, queries, channels, out });
        }
    }
}

/// What the keys have in common scores the same for all `count` of them.
fn add_center(center: &[f32], queries: &[f32], channels: usize, count: usize, out: &mut [f32]) {
    if center.is_empty() {
        return;
    }
    for (query, scores) in queries.chunks_exact(channels).zip(out.chunks_mut(BLOCK_TOKENS)) {
        let common: f32 = query.iter().zip(center).map(|(q, c)| q * c).sum();
        scores[..count].iter_mut().for_each(|score| *score += common);
    }
}

/// A function of its own for every form of rows: one for all of them takes minutes to compile.
fn score_rows<R: VectorRows>(isa: Isa, mut scores: RowScores<R>) {
    let heads = scores.queries.len() / scores.channels;
    dispatch!(isa, simd => in_passes(simd, heads, &mut scores));
}

/// See [`CodedQueries::prepare`].
fn prepare_queries(
    isa: Isa,
    coded: &mut CodedQueries,
    queries: &[f32],
    channels: usize,
    steps: &[f32],
    factor: f32,
) {
    if !coded.are_for(factor) {
        dispatch!(isa, simd => {
            coded.prepare(queries, channels, steps, factor);
        });
    }
}

/// f16 scales as f32.
fn to_f32<'a>(isa: Isa, stored: &[f16], scales: &'a mut Vec<f32>) -> &'a [f32] {
    dispatch!(isa, simd => scales_to_f32(simd, stored, scales))
}

/// Scores of the delta-coded keys `tokens` of a block. The memory of the block `ahead` is asked for.
///
/// The keys are written out in the type they are coded in, by one expand instruction a register where there is one,
/// and scored as rows: the copy never leaves the L1 cache, and all heads share it.
pub(crate) fn delta_scores(
    isa: Isa,
    block: DeltaBlock,
    ahead: Option<DeltaBlock>,
    tokens: Range<usize>,
    to: &mut Scoring,
    scratch: &mut KernelScratch,
) {
    let [masks_ahead, codes_ahead] = ahead.map_or([Ahead::default(); 2], block_memory);
    if !matches!(block.codes, DeltaCodes::Steps(_)) {
        masks_ahead.steps(1).prefetch();
    }
    let (KernelScratch { f32s, halves, .. }, masks) = (&mut *scratch, block.masks);
    match block.codes {
        DeltaCodes::F32(FloatCodes { frame, values }) => {
            let keys = Masked { frame, masks, values }.first(tokens.end);
            let stride = keys.room(f32s);
            dispatch!(isa, simd => simd.expand_f32(keys, f32s));
            score_expanded(isa, f32s, stride, tokens, codes_ahead, to);
        }
        DeltaCodes::F16(FloatCodes { frame, values }) => {
            let keys = Masked { frame, masks, values }.first(tokens.end).bits();
            let stride = expand_halves(isa, keys, halves);
            score_expanded::<f16>(isa, halves.reinterpret_cast(), stride, tokens, codes_ahead, to);
        }
        DeltaCodes::Bf16(FloatCodes { frame, values }) => {
            let keys = Masked { frame, masks, values }.first(tokens.end).bits();
            let stride = expand_halves(isa, keys, halves);
            score_expanded::<bf16>(isa, halves.reinterpret_cast(), stride, tokens, codes_ahead, to);
        }
        DeltaCodes::Steps(codes) => {
            score_steps(isa, masks, codes, ahead, &tokens, to, scratch);
            add_escapes(codes.escapes, &tokens, to);
        }
    }
}

/// Writes out keys of 16-bit numbers; returns the elements from one to the next.
fn expand_halves(isa: Isa, keys: Masked<u16>, halves: &mut Vec<u16>) -> usize {
    let stride = keys.room(halves);
    dispatch!(isa, simd => simd.expand_u16(keys, halves));
    stride
}

/// Scores of the keys `tokens` of a block that has been written out.
fn score_expanded<T: Number>(
    isa: Isa,
    keys: &[T],
    stride: usize,
    tokens: Range<usize>,
    ahead: Ahead,
    to: &mut Scoring,
) {
    let Scoring { queries, channels, scores: out } = to;
    let rows = FloatRows { data: &keys[tokens.start * stride..], stride };
    score_rows(isa, RowScores { rows, count: tokens.len(), ahead, queries, channels: *channels, out });
}

/// Scores of the keys `tokens` of a block in steps, but for their escapes.
fn score_steps(
    isa: Isa,
    masks: &[u64],
    codes: StepCodes,
    ahead: Option<DeltaBlock>,
    tokens: &Range<usize>,
    to: &mut Scoring,
    scratch: &mut KernelScratch,
) {
    let StepCodes { frame, differences: packed, wide, steps, factor, .. } = codes;
    let KernelScratch { bytes, differences, coded, .. } = scratch;
    let (queries, channels) = (to.queries, to.channels);
    if let Some(DeltaBlock { codes: DeltaCodes::Steps(StepCodes { frame, wide, .. }), .. }) = ahead {
        // A few lines, one allocation.
        Ahead::of(frame).and(wide).steps(1).prefetch();
    }
    let ahead = ahead.map_or([Ahead::default(); 2], block_memory);
    let values = differences.unpack(isa, packed, wide);
    let keys = Masked { frame, masks, values }.first(tokens.end);
    prepare_queries(isa, coded, queries, channels, steps, factor);
    let out = &mut *to.scores;
    let to = ToScore { queries: coded, channels, skip: tokens.start, ahead, out };
    if channels <= MOST_SUMMED_CHANNELS && dispatch!(isa, simd => simd.delta_scores(keys, to, bytes)) {
        return;
    }
    let stride = keys.room(bytes);
    dispatch!(isa, simd => {
        simd.expand_i8(keys, bytes);
        coded.times_steps(queries, channels, steps, factor);
    });
    let mut to = Scoring { queries: &coded.exact, channels, scores: out };
    score_expanded(isa, bytes, stride, tokens.clone(), ahead[1], &mut to);
}

/// Adds what no code of the keys `tokens` holds.
fn add_escapes(escapes: &[Escape], tokens: &Range<usize>, to: &mut Scoring) {
    for escape in escapes {
        let first = usize::from(escape.from).max(tokens.start);
        let last = usize::from(escape.to).min(tokens.end);
        for (query, out) in to.queries.chunks(to.channels).zip(to.scores.chunks_mut(BLOCK_TOKENS)) {
            let more = query[usize::from(escape.channel)] * escape.residual;
            let scores =
                out.get_mut(first - tokens.start..last.max(first) - tokens.start).unwrap_or_default();
            scores.iter_mut().for_each(|score| *score += more);
        }
    }
}
