//! The micro-kernels of decoding: one query per head against the cache of one kv head.
//!
//! Channels lie along the lanes, as they do in memory, and the heads of a group share every row that is loaded and
//! converted. Keys of 8 bits are multiplied as integers; with AVX-512 sixteen of them lie side by side instead. Reading order: [`rows`]
//! (the stored forms), [`dots`], [`values`], [`passes`] (which heads go together), [`select`] (skip test and softmax), [`differences`] and [`expand`]
//! (delta-coded keys), [`queries`] and [`vnni`] or [`madd`] (8 bits), and [`lanes`], what differs between instruction sets.

mod ahead;
mod differences;
mod dots;
mod expand;
mod lanes;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod madd;
mod passes;
mod queries;
mod rows;
mod select;
mod values;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod vnni;

use deltallm_core::{BlockCodes, DeltaBlock};
use deltallm_simd::{Isa, convert::finite_f16_to_f32, dispatch, fearless_simd::prelude::*};
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};

use crate::decode::BLOCK;
use ahead::Ahead;
use differences::Differences;
use dots::Dots;
use expand::Masked;
use lanes::{Lanes, ToScore};
use passes::in_passes;
use queries::{CodedQueries, MOST_CHANNELS};
use rows::{Int4Kernel, Int8Kernel, NibbleRows, lanes};
pub(crate) use rows::{Int4Keys, Int4Rows, Int8Rows, StoredRows, Strided};
pub(crate) use select::{Kept, Softmax, select};
use values::Weighted;

/// Channels are padded to a multiple of this, the longest vector of any instruction set.
pub(crate) const CHANNELS: usize = 16;

/// Room for the keys of a delta-coded block, and for what is derived from a store's scales.
#[derive(Debug, Default)]
pub(crate) struct KernelScratch {
    f32s: Vec<f32>,
    halves: Vec<u16>,
    bytes: Vec<i8>,
    /// What the codes of a block's keys change by.
    differences: Differences,
    /// Scales as f32.
    scales: Vec<f32>,
    /// Queries times the scales of their channels.
    folded: Vec<f32>,
    coded: CodedQueries,
    keys: Option<[usize; 2]>,
}

impl KernelScratch {
    /// What is derived from queries and keys is derived again if `keys` (kv head and phase) are others than before.
    pub(crate) fn begin(&mut self, keys: [usize; 2]) {
        if self.keys.replace(keys) != Some(keys) {
            self.coded.forget();
        }
    }

    /// Other queries follow, whatever their kv head and phase.
    pub(crate) fn forget(&mut self) {
        self.keys = None;
    }
}

/// The scores of one block of keys, `[group, BLOCK]`, and the queries they are for.
pub(crate) struct Scoring<'a> {
    /// Scaled queries of the group, `[group, channels]`, padded with zeros to a multiple of [`CHANNELS`].
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
    let KernelScratch { scales, folded, coded, .. } = scratch;
    let (queries, channels, out) = (to.queries, to.channels, &mut to.scores[at..]);
    let memory = ahead.map_or([Ahead::default(); 2], |rows| rows.memory(channels));
    let ahead = memory[0];
    match rows {
        StoredRows::F32(rows) => score_rows(isa, Dots { rows, count, ahead, queries, channels, out }),
        StoredRows::F16(rows) => score_rows(isa, Dots { rows, count, ahead, queries, channels, out }),
        StoredRows::Bf16(rows) => score_rows(isa, Dots { rows, count, ahead, queries, channels, out }),
        StoredRows::Int8(rows) => {
            if channels <= MOST_CHANNELS {
                prepare(isa, coded, queries, channels, &[], 1.0);
                let to = ToScore { queries: coded, channels, skip: 0, ahead: memory, out };
                if dispatch!(isa, simd => simd.int8_scores(rows, count, to)) {
                    return;
                }
            }
            let rows = Int8Kernel { codes: rows.codes, scales: to_f32(isa, rows.scales, scales) };
            score_rows(isa, Dots { rows, count, ahead, queries, channels, out });
        }
        StoredRows::Int4(Int4Rows { codes, scales: stored }) => {
            let rows = Int4Kernel { codes, scales: to_f32(isa, stored, scales) };
            score_rows(isa, Dots { rows, count, ahead, queries, channels, out });
        }
        StoredRows::Int4Keys(Int4Keys { codes, scales: stored, minima }) => {
            // `q . (minima + code * scales)`: the scales go into the query, the minima are one number a head.
            grow(folded, queries.len());
            let scales = to_f32(isa, stored, scales);
            for (query, folded) in queries.chunks(channels).zip(folded.chunks_mut(channels)) {
                folded.iter_mut().zip(query).zip(scales).for_each(|((f, q), scale)| *f = q * scale);
            }
            let folded = &folded[..queries.len()];
            let rows = NibbleRows(codes);
            score_rows(isa, Dots { rows, count, ahead, queries: folded, channels, out });
            for (query, out) in queries.chunks(channels).zip(out.chunks_mut(BLOCK)) {
                let least: f32 =
                    query.iter().zip(minima).map(|(q, least)| q * finite_f16_to_f32(*least)).sum();
                out[..count].iter_mut().for_each(|score| *score += least);
            }
        }
    }
}

/// A function of its own for every form of rows: one for all of them takes minutes to compile.
fn score_rows<R: rows::Rows>(isa: Isa, mut dots: Dots<R>) {
    let heads = dots.queries.len() / dots.channels;
    dispatch!(isa, simd => in_passes(simd, heads, &mut dots));
}

/// See [`CodedQueries::prepare`].
fn prepare(isa: Isa, coded: &mut CodedQueries, queries: &[f32], channels: usize, steps: &[f32], factor: f32) {
    if !coded.are_for(factor) {
        dispatch!(isa, simd => {
            coded.prepare(queries, channels, steps, factor);
        });
    }
}

/// f16 scales as f32.
fn to_f32<'a>(isa: Isa, stored: &[f16], scales: &'a mut Vec<f32>) -> &'a [f32] {
    dispatch!(isa, simd => convert(simd, stored, scales))
}

/// Scores of the delta-coded keys `skip..skip + count` of a block. The memory of the block `ahead` is asked for.
///
/// The keys are written out in the type they are coded in, by one expand instruction a register where there is one,
/// and scored as rows: the copy never leaves the L1 cache, and all heads share it.
pub(crate) fn delta_scores(
    isa: Isa,
    block: DeltaBlock,
    ahead: Option<DeltaBlock>,
    skip: usize,
    count: usize,
    to: &mut Scoring,
    scratch: &mut KernelScratch,
) {
    let (queries, channels, out) = (to.queries, to.channels, &mut *to.scores);
    let (ahead_block, memory) = (ahead, ahead.map_or([Ahead::default(); 2], block_memory));
    let KernelScratch { f32s, halves, bytes, differences, coded, .. } = scratch;
    let ahead = memory[1];
    if !matches!(block.codes, BlockCodes::Int8 { .. }) {
        memory[0].steps(1).prefetch();
    }
    match block.codes {
        BlockCodes::F32 { frame, values } => {
            let keys = Masked { frame, masks: block.masks, values }.first(skip + count);
            let stride = keys.room(f32s);
            dispatch!(isa, simd => simd.expand_f32(keys, f32s));
            let rows = Strided { data: &f32s[skip * stride..], stride };
            score_rows(isa, Dots { rows, count, ahead, queries, channels, out });
        }
        BlockCodes::F16 { frame, values } => {
            let keys = Masked { frame, masks: block.masks, values }.first(skip + count).bits();
            let stride = keys.room(halves);
            dispatch!(isa, simd => simd.expand_u16(keys, halves));
            let data: &[f16] = halves[skip * stride..].reinterpret_cast();
            let rows = Strided { data, stride };
            score_rows(isa, Dots { rows, count, ahead, queries, channels, out });
        }
        BlockCodes::Bf16 { frame, values } => {
            let keys = Masked { frame, masks: block.masks, values }.first(skip + count).bits();
            let stride = keys.room(halves);
            dispatch!(isa, simd => simd.expand_u16(keys, halves));
            let data: &[bf16] = halves[skip * stride..].reinterpret_cast();
            let rows = Strided { data, stride };
            score_rows(isa, Dots { rows, count, ahead, queries, channels, out });
        }
        BlockCodes::Int8 { frame, differences: packed, wide, steps, factor, escapes } => {
            if let Some(DeltaBlock { codes: BlockCodes::Int8 { frame, wide, .. }, .. }) = ahead_block {
                // A few lines, one allocation.
                Ahead::of(frame).and(wide).steps(1).prefetch();
            }
            let values = differences.unpack(isa, packed, wide);
            let keys = Masked { frame, masks: block.masks, values }.first(skip + count);
            prepare(isa, coded, queries, channels, steps, factor);
            let to = ToScore { queries: coded, channels, skip, ahead: memory, out };
            let done =
                channels <= MOST_CHANNELS && dispatch!(isa, simd => simd.delta_scores(keys, to, bytes));
            if !done {
                let stride = keys.room(bytes);
                dispatch!(isa, simd => {
                    simd.expand_i8(keys, bytes);
                    coded.times_steps(queries, channels, steps, factor);
                });
                let rows = Strided { data: &bytes[skip * stride..], stride };
                score_rows(isa, Dots { rows, count, ahead, queries: &coded.exact, channels, out });
            }
            for escape in escapes {
                let first = usize::from(escape.from).max(skip);
                let last = usize::from(escape.to).min(skip + count);
                for (query, out) in queries.chunks(channels).zip(out.chunks_mut(BLOCK)) {
                    let more = query[usize::from(escape.channel)] * escape.residual;
                    let scores = out.get_mut(first - skip..last.max(first) - skip).unwrap_or_default();
                    scores.iter_mut().for_each(|score| *score += more);
                }
            }
        }
        // Not reached: there are no other codes.
        _ => {}
    }
}

/// `sums[head] += weights[head][i] * rows[picks[i]]` for all picks; `weights` is `[group, BLOCK]`, `sums`
/// `[group, channels]`. The memory of the rows `ahead` is asked for.
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
pub(crate) fn add_values(
    isa: Isa,
    rows: StoredRows,
    ahead: Option<StoredRows>,
    picks: &[u8],
    weights: &[f32],
    sums: &mut [f32],
    channels: usize,
    scratch: &mut KernelScratch,
) {
    let scales = &mut scratch.scales;
    let [ahead, _] = ahead.map_or([Ahead::default(); 2], |rows| rows.memory(channels));
    match rows {
        StoredRows::F32(rows) => add_rows(isa, Weighted { rows, picks, ahead, weights, sums, channels }),
        StoredRows::F16(rows) => add_rows(isa, Weighted { rows, picks, ahead, weights, sums, channels }),
        StoredRows::Bf16(rows) => add_rows(isa, Weighted { rows, picks, ahead, weights, sums, channels }),
        StoredRows::Int8(Int8Rows { codes, scales: stored }) => dispatch!(isa, simd => {
            let rows = Int8Kernel { codes, scales: convert(simd, stored, scales) };
            let weighted = Weighted { rows, picks, ahead, weights, sums, channels };
            weigh(simd, weighted);
        }),
        StoredRows::Int4(Int4Rows { codes, scales: stored }) => dispatch!(isa, simd => {
            let rows = Int4Kernel { codes, scales: convert(simd, stored, scales) };
            let weighted = Weighted { rows, picks, ahead, weights, sums, channels };
            weigh(simd, weighted);
        }),
        // Values are never coded by channel.
        StoredRows::Int4Keys(_) => {}
    }
}

/// A function of its own for every form of rows, like [`score_rows`].
fn add_rows<R: rows::Rows>(isa: Isa, weighted: Weighted<R>) {
    dispatch!(isa, simd => weigh(simd, weighted));
}

/// Asks for the memory of the picked rows.
pub(crate) fn prefetch(rows: StoredRows, picks: &[u8], channels: usize) {
    match rows {
        StoredRows::F32(rows) => Ahead::of(rows.data).prefetch_rows(picks, rows.stride * 4),
        StoredRows::F16(rows) => Ahead::of(rows.data).prefetch_rows(picks, rows.stride * 2),
        StoredRows::Bf16(rows) => Ahead::of(rows.data).prefetch_rows(picks, rows.stride * 2),
        StoredRows::Int8(rows) => {
            Ahead::of(rows.codes).prefetch_rows(picks, channels);
            Ahead::of(rows.scales).steps(1).prefetch();
        }
        StoredRows::Int4(rows) => {
            Ahead::of(rows.codes).prefetch_rows(picks, channels / 2);
            Ahead::of(rows.scales).steps(1).prefetch();
        }
        StoredRows::Int4Keys(_) => {}
    }
}

impl StoredRows<'_> {
    /// Where the rows are, and their scales.
    fn memory(self, channels: usize) -> [Ahead; 2] {
        let (rows, scales) = match self {
            // Somebody else's cache, with other heads between the rows.
            Self::F32(rows) if rows.stride != channels => (Ahead::default(), Ahead::default()),
            Self::F32(rows) => (Ahead::of(rows.data), Ahead::default()),
            Self::F16(rows) => (Ahead::of(rows.data), Ahead::default()),
            Self::Bf16(rows) => (Ahead::of(rows.data), Ahead::default()),
            Self::Int8(rows) => (Ahead::of(rows.codes), Ahead::of(rows.scales)),
            Self::Int4(rows) => (Ahead::of(rows.codes), Ahead::of(rows.scales)),
            Self::Int4Keys(rows) => (Ahead::of(rows.codes), Ahead::default()),
        };
        [rows, scales]
    }
}

/// Where the masks of a block are, and its key frame with the values, which lie behind it, or its differences.
fn block_memory(block: DeltaBlock) -> [Ahead; 2] {
    let codes = match block.codes {
        BlockCodes::F32 { frame, values } => Ahead::of(frame).and(values),
        BlockCodes::F16 { frame, values } => Ahead::of(frame).and(values),
        BlockCodes::Bf16 { frame, values } => Ahead::of(frame).and(values),
        BlockCodes::Int8 { differences, .. } => Ahead::of(differences),
        _ => Ahead::default(),
    };
    [Ahead::of(block.masks), codes]
}

#[inline(always)]
fn weigh<S: Lanes, R: rows::Rows>(simd: S, mut weighted: Weighted<R>) {
    in_passes(simd, weighted.sums.len() / weighted.channels, &mut weighted);
}

/// Scales as f32.
#[inline(always)]
fn convert<'a, S: Lanes>(simd: S, stored: &[f16], scales: &'a mut Vec<f32>) -> &'a [f32] {
    grow(scales, stored.len());
    let whole = stored.len() / lanes::<S>() * lanes::<S>();
    for (x, out) in stored.chunks_exact(lanes::<S>()).zip(scales.chunks_exact_mut(lanes::<S>())) {
        simd.f16s(x).store_slice(out);
    }
    for (x, out) in stored[whole..].iter().zip(&mut scales[whole..]) {
        *out = finite_f16_to_f32(*x);
    }
    &scales[..stored.len()]
}

impl<T> Masked<'_, T> {
    /// Tokens of the block.
    fn tokens(&self) -> usize {
        self.masks.len() / self.frame.len().div_ceil(64)
    }

    /// The first `tokens` tokens of the block.
    fn first(self, tokens: usize) -> Self {
        let words = self.frame.len().div_ceil(64);
        Self { masks: &self.masks[..tokens * words], ..self }
    }

    /// Makes room for the keys and returns the elements from one to the next: whole mask words, which also covers the
    /// padding of the channels.
    fn room<U: Copy + Default>(&self, keys: &mut Vec<U>) -> usize {
        let stride = expand::row_stride(self.frame.len());
        grow(keys, self.tokens() * stride);
        stride
    }
}

impl<'a, T> Masked<'a, T>
where
    [T]: HalfFloatSliceExt,
{
    fn bits(self) -> Masked<'a, u16> {
        Masked {
            frame: self.frame.reinterpret_cast(),
            masks: self.masks,
            values: self.values.reinterpret_cast(),
        }
    }
}

fn grow<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) {
    if scratch.len() < len {
        scratch.resize(len, T::default());
    }
}
