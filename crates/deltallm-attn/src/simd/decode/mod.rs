//! The micro-kernels of decoding: one query per head against the cache of one kv head.
//!
//! Here channels lie along the lanes, as they do in memory, and the heads of a group share every row that is loaded and
//! converted. Reading order: [`rows`] (the stored forms), [`dots`], [`values`], [`softmax`], [`expand`] (delta-coded keys), and [`lanes`], what
//! differs between instruction sets.

mod dots;
mod expand;
mod lanes;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod prefetch;
mod rows;
mod softmax;
mod values;

use fearless_simd::{Fallback, Level, Simd};
use half::{bf16, f16, slice::{HalfBitsSliceExt, HalfFloatSliceExt}};

use super::SimdLevel;
use crate::decode::BLOCK;
pub(crate) use expand::Masked;
use lanes::Lanes;
use rows::Number;
pub(crate) use rows::{StoredRows, Strided};

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

/// Room for the keys of a delta-coded block, and for rows that have to be converted first.
#[derive(Debug, Default)]
pub(crate) struct RowScratch {
    f32s: Vec<f32>,
    halves: Vec<u16>,
}

/// The scores of one block of keys, `[group, BLOCK]`, and the queries they are for.
pub(crate) struct Scoring<'a> {
    /// Scaled queries of the group, `[group, channels]`, padded with zeros to a multiple of [`CHANNELS`].
    pub(crate) queries: &'a [f32],
    /// Padded channels.
    pub(crate) channels: usize,
    /// Channels of a stored row.
    pub(crate) head_dim: usize,
    /// The scores.
    pub(crate) scores: &'a mut [f32],
}

impl SimdLevel {
    /// Scores of `count` rows, the first of which is the block's key `at`.
    pub(crate) fn decode_scores(
        self,
        rows: StoredRows,
        count: usize,
        at: usize,
        to: &mut Scoring,
        scratch: &mut RowScratch,
    ) {
        let (queries, channels, out) = (to.queries, to.channels, &mut to.scores[at..]);
        let rows = fitting(rows, count, to.head_dim, channels, &mut scratch.f32s);
        dispatch!(self.level, simd => match rows {
            StoredRows::F32(rows) => dots::dots(simd, rows, count, queries, channels, out, BLOCK),
            StoredRows::F16(rows) => dots::dots(simd, rows, count, queries, channels, out, BLOCK),
            StoredRows::Bf16(rows) => dots::dots(simd, rows, count, queries, channels, out, BLOCK),
        });
    }

    /// Scores of the delta-coded keys `skip..skip + count` of a block.
    pub(crate) fn decode_delta_scores(
        self,
        block: StoredDeltas,
        skip: usize,
        count: usize,
        to: &mut Scoring,
        scratch: &mut RowScratch,
    ) {
        let (queries, channels, out) = (to.queries, to.channels, &mut *to.scores);
        let stride = expand::row_stride(channels);
        // Rows are whole mask words long, which also covers the padding of the channels.
        let room = (skip + count) * stride;
        let RowScratch { f32s, halves } = scratch;
        match block {
            StoredDeltas::F32(block) => {
                grow(f32s, room);
                dispatch!(self.level, simd => {
                    simd.expand_f32(block.first(skip + count), f32s);
                    let rows = Strided { data: &f32s[skip * stride..], stride };
                    dots::dots(simd, rows, count, queries, channels, out, BLOCK);
                });
            }
            StoredDeltas::F16(block) => {
                grow(halves, room);
                dispatch!(self.level, simd => {
                    simd.expand_u16(block.first(skip + count).bits(), halves);
                    let rows: &[f16] = halves[skip * stride..].reinterpret_cast();
                    dots::dots(simd, Strided { data: rows, stride }, count, queries, channels, out, BLOCK);
                });
            }
            StoredDeltas::Bf16(block) => {
                grow(halves, room);
                dispatch!(self.level, simd => {
                    simd.expand_u16(block.first(skip + count).bits(), halves);
                    let rows: &[bf16] = halves[skip * stride..].reinterpret_cast();
                    dots::dots(simd, Strided { data: rows, stride }, count, queries, channels, out, BLOCK);
                });
            }
        }
    }

    /// `sums[head] += weights[head][i] * rows[picks[i]]` for all picks; `weights` is `[group, BLOCK]`, `sums`
    /// `[group, channels]`.
    #[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
    pub(crate) fn decode_values(
        self,
        rows: StoredRows,
        picks: &[u8],
        weights: &[f32],
        sums: &mut [f32],
        channels: usize,
        head_dim: usize,
        scratch: &mut RowScratch,
    ) {
        let count = picks.last().map_or(0, |last| usize::from(*last) + 1);
        let rows = fitting(rows, count, head_dim, channels, &mut scratch.f32s);
        dispatch!(self.level, simd => match rows {
            StoredRows::F32(rows) => values::accumulate(simd, rows, picks, weights, BLOCK, sums, channels),
            StoredRows::F16(rows) => values::accumulate(simd, rows, picks, weights, BLOCK, sums, channels),
            StoredRows::Bf16(rows) => values::accumulate(simd, rows, picks, weights, BLOCK, sums, channels),
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

/// The rows as they are if their channels fill whole vectors, or else as padded f32.
fn fitting<'a>(
    rows: StoredRows<'a>,
    count: usize,
    head_dim: usize,
    channels: usize,
    scratch: &'a mut Vec<f32>,
) -> StoredRows<'a> {
    if head_dim == channels {
        return rows;
    }
    scratch.clear();
    scratch.resize(count * channels, 0.0);
    match rows {
        StoredRows::F32(rows) => rows.pad(head_dim, channels, scratch),
        StoredRows::F16(rows) => rows.pad(head_dim, channels, scratch),
        StoredRows::Bf16(rows) => rows.pad(head_dim, channels, scratch),
    }
    StoredRows::F32(Strided { data: scratch, stride: channels })
}

impl<T: Number> Strided<'_, T> {
    fn pad(self, head_dim: usize, channels: usize, out: &mut [f32]) {
        for (row, out) in self.data.chunks(self.stride).zip(out.chunks_exact_mut(channels)) {
            out.iter_mut().zip(&row[..head_dim]).for_each(|(out, x)| *out = x.to_f32());
        }
    }
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
