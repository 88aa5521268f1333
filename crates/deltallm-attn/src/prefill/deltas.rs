//! The sparse product: scores of keys of which only the differences are at hand.
//!
//! The first key of a block is whole; from there `s(m,t) = s(m,t-1) + q_m . delta_t` (`docs/method.md`, equation 3). All
//! lanes of the tile need the same few rows of the transposed queries, so unstructured zeros are skipped without gathering
//! anything, and the running scores stay in registers over the whole block.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix};
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

use super::{
    keys::{KeyScratch, TileKeys, TileQueries, number_from},
    lanes::large_tiles,
    rows::score_rows,
    softmax::keep_above,
    stream::{KeyStream, KeyStreams, MOST_NUMBERED_CHANNELS},
};

/// The delta-coded keys of a cache, whose differences are written out block by block.
pub(crate) struct HeldDeltas<'a>(pub(crate) &'a DeltaMatrix);

/// The differences of all blocks that `tokens` are in.
pub(crate) fn streams(isa: Isa, matrix: &DeltaMatrix, tokens: Range<usize>) -> KeyStreams {
    let first_block = tokens.start / BLOCK_TOKENS;
    let (mut streams, mut rows) = (KeyStreams::new(matrix.channels(), first_block), Vec::new());
    for block in first_block..tokens.end.div_ceil(BLOCK_TOKENS) {
        matrix.reconstruct(block, &mut rows);
        streams.push_block(isa, &rows);
    }
    streams
}

impl TileKeys for KeyStreams {
    fn score(
        &self,
        tokens: &[usize],
        queries: &TileQueries,
        limits: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
        _: &mut KeyScratch,
    ) {
        let Some(first) = tokens.first() else { return };
        let block = self.block(first / BLOCK_TOKENS);
        score_stream(block, first % BLOCK_TOKENS, queries, limits, out, kept);
    }
}

impl TileKeys for HeldDeltas<'_> {
    fn score(
        &self,
        tokens: &[usize],
        queries: &TileQueries,
        limits: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
        scratch: &mut KeyScratch,
    ) {
        let Some(first) = tokens.first() else { return };
        let (block, skip) = (first / BLOCK_TOKENS, first % BLOCK_TOKENS);
        self.0.reconstruct(block, &mut scratch.rows);
        if self.0.channels() > MOST_NUMBERED_CHANNELS {
            number_from(first - skip, tokens, &mut scratch.numbers);
            return score_rows(&scratch.rows, &scratch.numbers, queries, limits, out, kept);
        }
        let mut streams = KeyStreams::new(self.0.channels(), block);
        streams.push_block(queries.isa, &scratch.rows);
        score_stream(streams.block(block), skip, queries, limits, out, kept);
    }
}

/// Scores of the keys of a block from the key `skip` on; with `limits` of those that are above any.
fn score_stream(
    keys: KeyStream,
    skip: usize,
    queries: &TileQueries,
    limits: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let TileQueries { isa, lanes, rows, .. } = queries;
    match limits {
        None => {
            scores(*isa, keys, skip, rows, *lanes, out);
            kept.clear();
            kept.extend(0..out.len() / lanes);
        }
        Some(limits) => {
            if !survivors(*isa, keys, skip, rows, limits, out, kept) {
                scores(*isa, keys, skip, rows, *lanes, out);
                keep_above(*isa, out, limits, kept);
            }
        }
    }
}

/// The scores of the keys of a block from the key `skip` on, as many as `out` has room for.
fn scores(isa: Isa, stream: KeyStream, skip: usize, queries: &[f32], lanes: usize, out: &mut [f32]) {
    dispatch!(isa, simd => every_score(simd, stream, skip, queries, lanes, out));
}

/// The scores of those of these keys that are above the threshold in any lane, packed into the first rows of `out`, and
/// their numbers, counted from `skip`. False, and nothing done, for thresholds or a number of lanes that have no kernel.
fn survivors(
    isa: Isa,
    stream: KeyStream,
    skip: usize,
    queries: &[f32],
    thresholds: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) -> bool {
    dispatch!(isa, simd => tested_scores(simd, stream, skip, queries, thresholds, out, kept))
}

#[inline(always)]
fn every_score<S: Simd>(
    simd: S,
    stream: KeyStream,
    skip: usize,
    queries: &[f32],
    lanes: usize,
    out: &mut [f32],
) {
    let mut lane = 0;
    while lane < lanes {
        let operands = Panel { stream, skip, queries, lanes, lane };
        lane += S::f32s::LEN
            * match (lanes - lane) / S::f32s::LEN {
                _ if const { !large_tiles::<S>() } => every_key::<S, 1>(simd, operands, out),
                1 => every_key::<S, 1>(simd, operands, out),
                2 | 3 => every_key::<S, 2>(simd, operands, out),
                4..8 => every_key::<S, 4>(simd, operands, out),
                _ => every_key::<S, 8>(simd, operands, out),
            };
    }
}

#[inline(always)]
fn tested_scores<S: Simd>(
    simd: S,
    stream: KeyStream,
    skip: usize,
    queries: &[f32],
    thresholds: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) -> bool {
    // A query that sees no exact key keeps all: nothing is left of a score beside its threshold of minus infinity.
    if thresholds.contains(&f32::NEG_INFINITY) {
        return false;
    }
    let lanes = thresholds.len();
    let operands = Panel { stream, skip, queries, lanes, lane: 0 };
    // 64, 96 and 128 lanes with vectors of 512 and 256 bits, and 64 with 128 bits: what fits in registers.
    match lanes / S::f32s::LEN {
        _ if const { !large_tiles::<S>() } => return false,
        4 => keys_above::<S, 4>(simd, operands, thresholds, out, kept),
        6 => keys_above::<S, 6>(simd, operands, thresholds, out, kept),
        8 => keys_above::<S, 8>(simd, operands, thresholds, out, kept),
        12 => keys_above::<S, 12>(simd, operands, thresholds, out, kept),
        16 => keys_above::<S, 16>(simd, operands, thresholds, out, kept),
        _ => return false,
    }
    true
}

/// Some vectors of a tile of queries, and the keys they are to meet.
#[derive(Clone, Copy)]
struct Panel<'a> {
    stream: KeyStream<'a>,
    /// Keys of the block whose scores are not wanted.
    skip: usize,
    /// `[head_dim, lanes]`.
    queries: &'a [f32],
    lanes: usize,
    /// First lane of the panel.
    lane: usize,
}

impl Panel<'_> {
    /// Calls `key` with the running scores of every wanted key, in order; `sums` is what they start from.
    #[inline(always)]
    fn run<S: Simd, const N: usize>(
        self,
        simd: S,
        mut sums: [S::f32s; N],
        rows: usize,
        mut key: impl FnMut(usize, &[S::f32s; N]),
    ) {
        let width = S::f32s::LEN;
        for (token, (channels, deltas)) in self.stream.keys(self.skip + rows).enumerate() {
            for (channel, delta) in channels.iter().zip(deltas) {
                let delta = S::f32s::splat(simd, *delta);
                let query = &self.queries[usize::from(*channel) * self.lanes + self.lane..][..N * width];
                for n in 0..N {
                    sums[n] = delta.mul_add(S::f32s::from_slice(simd, &query[n * width..][..width]), sums[n]);
                }
            }
            if token >= self.skip {
                key(token - self.skip, &sums);
            }
        }
    }
}

/// The scores of the keys from `skip` on, for `N` vectors; answers `N`.
#[inline(always)]
fn every_key<S: Simd, const N: usize>(simd: S, panel: Panel, out: &mut [f32]) -> usize {
    let (width, Panel { lanes, lane, .. }) = (S::f32s::LEN, panel);
    let rows = out.len() / lanes;
    panel.run(simd, [S::f32s::splat(simd, 0.0); N], rows, |row, sums| {
        let out = &mut out[row * lanes + lane..][..N * width];
        for n in 0..N {
            sums[n].store_slice(&mut out[n * width..][..width]);
        }
    });
    N
}

/// The scores of the keys that are above the threshold in any of the `N` vectors, which are all lanes of the tile.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
fn keys_above<S: Simd, const N: usize>(
    simd: S,
    panel: Panel,
    thresholds: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let (width, lanes) = (S::f32s::LEN, panel.lanes);
    let zero = S::f32s::splat(simd, 0.0);
    // Scores relative to the thresholds.
    let (mut sums, mut limits) = ([zero; N], [zero; N]);
    for n in 0..N {
        limits[n] = S::f32s::from_slice(simd, &thresholds[n * width..][..width]);
        sums[n] = -limits[n];
    }
    let rows = out.len() / lanes;
    kept.clear();
    kept.resize(rows, 0);
    let mut count = 0;
    panel.run(simd, sums, rows, |row, sums| {
        let mut below = sums[0].simd_le(zero);
        for n in 1..N {
            below &= sums[n].simd_le(zero);
        }
        // Written always and counted only if kept: a branch would be guessed wrongly too often.
        kept[count] = row;
        let out = &mut out[count * lanes..][..N * width];
        for n in 0..N {
            (sums[n] + limits[n]).store_slice(&mut out[n * width..][..width]);
        }
        // `!(score <= limit)` and not `score > limit`: NaN is kept and ends in `Overflow`.
        count += usize::from(!below.all_true());
    });
    kept.truncate(count);
}
