//! The micro-kernels of decoding: one query per head against the cache of one kv head.
//!
//! Here channels lie along the lanes, as they do in memory, and the heads of a group share every row that is loaded and
//! converted. Reading order: [`rows`] (the stored forms), [`dots`], [`values`], [`softmax`], [`expand`] (delta-coded keys), and [`lanes`], what
//! differs between instruction sets.

mod ahead;
mod dots;
mod expand;
mod lanes;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod prefetch;
mod rows;
mod softmax;
mod values;

use fearless_simd::{Fallback, Level, prelude::*};
use half::{bf16, f16, slice::{HalfBitsSliceExt, HalfFloatSliceExt}};

use super::SimdLevel;
use crate::decode::BLOCK;
pub(crate) use expand::Masked;
use ahead::Ahead;
use lanes::{Lanes, finite};
use rows::{Int4Kernel, Int8Kernel, lanes};
pub(crate) use rows::{Int4Rows, Int8Rows, StoredRows, Strided};

/// Runs an expression with the token of a level, inside a function compiled for it.
macro_rules! dispatch {
    ($level:expr, $simd:ident => $op:expr) => {
        match $level {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Level::Avx512($simd) => $simd.vectorize(
                #[inline(always)]
                || $op,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Level::Avx2($simd) => $simd.vectorize(
                #[inline(always)]
                || $op,
            ),
            #[cfg(target_arch = "aarch64")]
            Level::Neon($simd) => $simd.vectorize(
                #[inline(always)]
                || $op,
            ),
            _ => {
                let $simd = Fallback::new();
                $op
            }
        }
    };
}

/// Channels are padded to a multiple of this, the longest vector of any level.
pub(crate) const CHANNELS: usize = 16;

/// A block of delta-coded keys in its stored form.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoredDeltas<'a> {
    /// New values in binary32.
    F32(Masked<'a, f32>),
    /// New values in binary16.
    F16(Masked<'a, f16>),
    /// New values in bfloat16.
    Bf16(Masked<'a, bf16>),
}

/// Room for the keys of a delta-coded block.
#[derive(Debug, Default)]
pub(crate) struct DeltaRows {
    f32s: Vec<f32>,
    halves: Vec<u16>,
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

impl SimdLevel {
    /// Scores of `count` rows, the first of which is the block's key `at`. The memory of the rows `ahead` is asked for.
    pub(crate) fn decode_scores(
        self,
        rows: StoredRows,
        ahead: Option<StoredRows>,
        count: usize,
        at: usize,
        to: &mut Scoring,
        scales: &mut Vec<f32>,
    ) {
        let (queries, channels, out) = (to.queries, to.channels, &mut to.scores[at..]);
        let ahead = ahead.map_or(Ahead::default(), StoredRows::memory);
        dispatch!(self.level, simd => match rows {
            StoredRows::F32(rows) => dots::dots(simd, rows, ahead, count, queries, channels, out, BLOCK),
            StoredRows::F16(rows) => dots::dots(simd, rows, ahead, count, queries, channels, out, BLOCK),
            StoredRows::Bf16(rows) => dots::dots(simd, rows, ahead, count, queries, channels, out, BLOCK),
            StoredRows::Int8(Int8Rows { codes, scales: stored }) => {
                let rows = Int8Kernel { codes, scales: convert(simd, stored, scales) };
                dots::dots(simd, rows, ahead, count, queries, channels, out, BLOCK);
            }
            StoredRows::Int4(Int4Rows { codes, scales: stored }) => {
                let rows = Int4Kernel { codes, scales: convert(simd, stored, scales) };
                dots::dots(simd, rows, ahead, count, queries, channels, out, BLOCK);
            }
        });
    }

    /// Scores of the delta-coded keys `skip..skip + count` of a block.
    pub(crate) fn decode_delta_scores(
        self,
        block: StoredDeltas,
        skip: usize,
        count: usize,
        to: &mut Scoring,
        scratch: &mut DeltaRows,
    ) {
        let (queries, channels, out) = (to.queries, to.channels, &mut *to.scores);
        let stride = expand::row_stride(channels);
        // Rows are whole mask words long, which also covers the padding of the channels.
        let room = (skip + count) * stride;
        let DeltaRows { f32s, halves } = scratch;
        match block {
            StoredDeltas::F32(block) => {
                grow(f32s, room);
                dispatch!(self.level, simd => {
                    simd.expand_f32(block.first(skip + count), f32s);
                    let rows = Strided { data: &f32s[skip * stride..], stride };
                    dots::dots(simd, rows, Ahead::default(), count, queries, channels, out, BLOCK);
                });
            }
            StoredDeltas::F16(block) => {
                grow(halves, room);
                dispatch!(self.level, simd => {
                    simd.expand_u16(block.first(skip + count).bits(), halves);
                    let rows: &[f16] = halves[skip * stride..].reinterpret_cast();
                    let rows = Strided { data: rows, stride };
                    dots::dots(simd, rows, Ahead::default(), count, queries, channels, out, BLOCK);
                });
            }
            StoredDeltas::Bf16(block) => {
                grow(halves, room);
                dispatch!(self.level, simd => {
                    simd.expand_u16(block.first(skip + count).bits(), halves);
                    let rows: &[bf16] = halves[skip * stride..].reinterpret_cast();
                    let rows = Strided { data: rows, stride };
                    dots::dots(simd, rows, Ahead::default(), count, queries, channels, out, BLOCK);
                });
            }
        }
    }

    /// `sums[head] += weights[head][i] * rows[picks[i]]` for all picks; `weights` is `[group, BLOCK]`, `sums`
    /// `[group, channels]`. The memory of the rows `ahead` is asked for.
    #[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
    pub(crate) fn decode_values(
        self,
        rows: StoredRows,
        ahead: Option<StoredRows>,
        picks: &[u8],
        weights: &[f32],
        sums: &mut [f32],
        channels: usize,
        scales: &mut Vec<f32>,
    ) {
        let ahead = ahead.map_or(Ahead::default(), StoredRows::memory);
        dispatch!(self.level, simd => match rows {
            StoredRows::F32(rows) => {
                values::accumulate(simd, rows, ahead, picks, weights, BLOCK, sums, channels);
            }
            StoredRows::F16(rows) => {
                values::accumulate(simd, rows, ahead, picks, weights, BLOCK, sums, channels);
            }
            StoredRows::Bf16(rows) => {
                values::accumulate(simd, rows, ahead, picks, weights, BLOCK, sums, channels);
            }
            StoredRows::Int8(Int8Rows { codes, scales: stored }) => {
                let rows = Int8Kernel { codes, scales: convert(simd, stored, scales) };
                values::accumulate(simd, rows, ahead, picks, weights, BLOCK, sums, channels);
            }
            StoredRows::Int4(Int4Rows { codes, scales: stored }) => {
                let rows = Int4Kernel { codes, scales: convert(simd, stored, scales) };
                values::accumulate(simd, rows, ahead, picks, weights, BLOCK, sums, channels);
            }
        });
    }

    /// Asks for the memory of the picked rows.
    pub(crate) fn decode_prefetch(self, rows: StoredRows, picks: &[u8], channels: usize) {
        dispatch!(self.level, simd => {
            let ask = |codes: Ahead, row: usize| {
                for pick in picks {
                    codes.prefetch_range(simd, usize::from(*pick) * row, row);
                }
            };
            match rows {
                StoredRows::F32(rows) => ask(Ahead::of(rows.data), rows.stride * 4),
                StoredRows::F16(rows) => ask(Ahead::of(rows.data), rows.stride * 2),
                StoredRows::Bf16(rows) => ask(Ahead::of(rows.data), rows.stride * 2),
                StoredRows::Int8(rows) => {
                    ask(Ahead::of(rows.codes), channels);
                    Ahead::of(rows.scales).prefetch(simd, 0, 1);
                }
                StoredRows::Int4(rows) => {
                    ask(Ahead::of(rows.codes), channels / 2);
                    Ahead::of(rows.scales).prefetch(simd, 0, 1);
                }
            }
        });
    }

    /// See [`softmax::update`].
    pub(crate) fn decode_softmax(
        self,
        scores: &mut [f32],
        max: &mut f32,
        total: &mut f32,
        sums: &mut [f32],
    ) {
        dispatch!(self.level, simd => softmax::update(simd, scores, max, total, sums));
    }

    /// See [`softmax::above`].
    pub(crate) fn decode_above(self, scores: &[f32], threshold: f32) -> u64 {
        dispatch!(self.level, simd => softmax::above(simd, scores, threshold))
    }
}

impl StoredRows<'_> {
    /// Where the rows are; scales are few enough to be found by themselves.
    fn memory(self) -> Ahead {
        match self {
            Self::F32(rows) => Ahead::of(rows.data),
            Self::F16(rows) => Ahead::of(rows.data),
            Self::Bf16(rows) => Ahead::of(rows.data),
            Self::Int8(rows) => Ahead::of(rows.codes),
            Self::Int4(rows) => Ahead::of(rows.codes),
        }
    }
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
        *out = finite(*x);
    }
    &scales[..stored.len()]
}

impl<T> Masked<'_, T> {
    /// The first `tokens` tokens of the block.
    fn first(self, tokens: usize) -> Self {
        let words = self.frame.len().div_ceil(64);
        Self { masks: &self.masks[..tokens * words], ..self }
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
