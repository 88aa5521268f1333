//! The sparse product on pairs of 16-bit numbers: two differences of a key in one instruction.
//!
//! The rows of queries that two differences need lie anywhere in the tile, so they are brought together on the way
//! (`vpunpcklwd`, `vpunpckhwd`): the tile is kept as 16-bit numbers, `[head_dim, lanes]`.
//!
//! Nothing drifts within a block. Codes of integers have one scale for a block, and their differences are differences of
//! codes: their sums are the codes of every key, exactly. Differences of bf16 are taken from what the ones before add up to.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that read and write memory; every block says why it is sound")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
mod avx512;

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::{dispatch, fearless_simd::prelude::*};
use half::bf16;

use super::{
    Dots, PairKind, Pairs, code_of, dot_bf16, dot_int16, largest_code, magnitude, magnitudes, scale_of,
};
use crate::simd::{KeyStream, KeyStreams, softmax::above, stream};

/// Keys of one kv head, in blocks; every key has an even number of differences, the last of which may be a zero.
#[derive(Debug)]
pub(crate) struct PairStreams {
    /// Differences of codes, or bits of bf16.
    streams: KeyStreams<u16>,
    /// What to multiply the codes of a block by. One for bf16.
    scales: Vec<f32>,
}

/// A tile of queries as 16-bit numbers.
#[derive(Debug, Default)]
pub(crate) struct DeltaTile {
    /// `[head_dim, lanes]`, lanes padded and ordered as suits the instructions.
    rows: Vec<u16>,
    /// What to multiply the codes of a lane by, `[lanes]`. Ones for bf16.
    scales: Vec<f32>,
}

/// Some keys of a block.
#[derive(Clone, Copy)]
struct Keys<'a> {
    stream: KeyStream<'a, u16>,
    scale: f32,
    /// Keys before those that are wanted.
    skip: usize,
}

/// The largest code: sums of products stay below 2^30, so that they can be compared with limits of that size by subtraction,
/// and differences of codes have 16 bits.
fn largest(head_dim: usize) -> f32 {
    largest_code(2 * head_dim).min(16383.0)
}

impl Pairs {
    /// Whether scores through the deltas take less time than whole products or, where values may be skipped, than a first pass in 8
    /// bits and whole products of what comes through it; a share `sent` of the entries is transmitted.
    pub(crate) fn goes_through_deltas(self, skips: bool, sent: f64) -> bool {
        let at_most = |share: f64| !skips || sent <= share;
        match self.dots {
            // For its answers: f32 goes through the first pass at this level.
            Dots::Portable => at_most(1.0),
            #[cfg(target_arch = "x86_64")]
            Dots::Avx512 => avx512::pays() && at_most(avx512::MOST_SENT),
            #[cfg(target_arch = "aarch64")]
            Dots::Neon => false,
        }
    }

    /// The differences of keys, `[keys, head_dim]`.
    pub(crate) fn streams(self, rows: &[f32], head_dim: usize) -> PairStreams {
        let mut out = PairStreams { streams: KeyStreams::new(head_dim), scales: Vec::new() };
        let mut deltas = Vec::new();
        for block in rows.chunks(BLOCK_TOKENS * head_dim) {
            deltas.clear();
            deltas.resize(block.len(), 0);
            let scale = match self.kind {
                PairKind::Int16 => {
                    let scale = scale_of(magnitude(block), largest(head_dim));
                    dispatch!(self.isa, simd => code_differences(simd, block, head_dim, 1.0 / scale, &mut deltas));
                    scale
                }
                PairKind::Bf16 => {
                    dispatch!(self.isa, simd => bf16_differences(simd, block, head_dim, &mut deltas));
                    1.0
                }
            };
            out.scales.push(scale);
            self.push_differences(&deltas, &mut out.streams);
        }
        out
    }

    /// Appends a block of keys of which all differences are there, zeros included.
    fn push_differences(self, deltas: &[u16], out: &mut KeyStreams<u16>) {
        #[cfg(target_arch = "x86_64")]
        if matches!(self.dots, Dots::Avx512) {
            return avx512::push_differences(deltas, out);
        }
        stream::push_block(deltas, out, 2, |delta, _| delta);
    }

    /// Takes a tile of queries, `[head_dim, lanes]`.
    pub(crate) fn set_tile(self, queries: &[f32], lanes: usize, out: &mut DeltaTile) {
        let DeltaTile { rows, scales } = out;
        scales.clear();
        match self.kind {
            PairKind::Int16 => {
                scales.resize(lanes, 0.0);
                dispatch!(self.isa, simd => magnitudes(simd, queries, scales));
                let largest = largest(queries.len() / lanes);
                scales.iter_mut().for_each(|most| *most = scale_of(*most, largest));
            }
            PairKind::Bf16 => scales.resize(lanes, 1.0),
        }
        let factors: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        #[cfg(target_arch = "x86_64")]
        if matches!(self.dots, Dots::Avx512) && lanes.is_multiple_of(16) {
            return avx512::set_tile(self.kind, queries, lanes, &factors, rows);
        }
        rows.clear();
        for row in queries.chunks_exact(lanes) {
            rows.extend(row.iter().zip(&factors).map(|(x, factor)| self.number(x * factor)));
        }
    }

    /// A number as its 16 bits; codes are multiplied by their factor before.
    fn number(self, x: f32) -> u16 {
        match self.kind {
            PairKind::Int16 => code_of(x),
            PairKind::Bf16 => bf16::from_f32(x).to_bits(),
        }
    }

    /// The scores of the keys of block `block` from its key `skip` on, as many as `out` has room for; with `thresholds` only those
    /// that are above them in any lane, packed to the front. `kept` gets their numbers, counted from `skip`.
    #[expect(clippy::too_many_arguments, reason = "the operands of a product, and what is wanted of it")]
    pub(crate) fn delta_scores(
        self,
        keys: &PairStreams,
        block: usize,
        skip: usize,
        tile: &DeltaTile,
        thresholds: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        let keys = Keys { stream: keys.streams.block(block), scale: keys.scales[block], skip };
        kept.clear();
        #[cfg(target_arch = "x86_64")]
        if matches!(self.dots, Dots::Avx512) && tile.scales.len().is_multiple_of(16) {
            return avx512::scores(self.kind, keys, tile, thresholds, out, kept);
        }
        self.portable_scores(keys, tile, thresholds, out, kept);
    }

    fn portable_scores(
        self,
        keys: Keys,
        tile: &DeltaTile,
        thresholds: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        let lanes = tile.scales.len();
        let (mut sums, mut float_sums) = (vec![0_i32; lanes], vec![0.0_f32; lanes]);
        let count = out.len() / lanes;
        debug_assert!(tile.rows.len() == keys.stream.head_dim * lanes);
        debug_assert!(keys.skip + count <= keys.stream.len());
        for (key, (channels, deltas)) in keys.stream.keys(keys.skip + count).enumerate() {
            for (of, pair) in channels.chunks_exact(2).zip(deltas.chunks_exact(2)) {
                let row = |channel: u8| &tile.rows[usize::from(channel) * lanes..][..lanes];
                for (lane, (a, b)) in row(of[0]).iter().zip(row(of[1])).enumerate() {
                    let queries = u32::from(*a) | u32::from(*b) << 16;
                    match self.kind {
                        PairKind::Int16 => sums[lane] = dot_int16(sums[lane], [pair[0], pair[1]], queries),
                        PairKind::Bf16 => {
                            float_sums[lane] = dot_bf16(float_sums[lane], [pair[0], pair[1]], queries)
                        }
                    }
                }
            }
            let Some(wanted) = key.checked_sub(keys.skip) else { continue };
            let row = &mut out[kept.len() * lanes..][..lanes];
            for (lane, score) in row.iter_mut().enumerate() {
                *score = match self.kind {
                    PairKind::Int16 => sums[lane] as f32 * (keys.scale * tile.scales[lane]),
                    PairKind::Bf16 => float_sums[lane],
                };
            }
            if thresholds.is_none_or(|limits| row.iter().zip(limits).any(|(x, limit)| above(*x, *limit))) {
                kept.push(wanted);
            }
        }
    }
}

/// Differences of the codes of a block of keys.
#[inline(always)]
fn code_differences<S: Simd>(_: S, rows: &[f32], head_dim: usize, factor: f32, out: &mut [u16]) {
    let mut before = vec![0; head_dim];
    for (row, out) in rows.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        for ((x, last), out) in row.iter().zip(&mut before).zip(out) {
            let code = code_of(x * factor);
            (*out, *last) = (code.wrapping_sub(*last), code);
        }
    }
}

/// Differences of a block of keys, rounded to bf16: what is transmitted makes up for the rounding of what was before.
#[inline(always)]
fn bf16_differences<S: Simd>(_: S, rows: &[f32], head_dim: usize, out: &mut [u16]) {
    let (mut before, mut sums) = (vec![0.0; head_dim], vec![0.0; head_dim]);
    for (row, out) in rows.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        for (((x, last), sum), out) in row.iter().zip(&mut before).zip(&mut sums).zip(out) {
            let delta = if x == last { 0 } else { bf16_bits(x - *sum) };
            *sum += f32::from_bits(u32::from(delta) << 16);
            (*out, *last) = (delta, *x);
        }
    }
}

/// The bits of `x`, which is a number, rounded to bf16, to even; without a branch, so that vectors can follow.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    // Of none it would wrap around; that ends in an error, as all sums of it do.
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use deltallm_simd::Isa;

    use super::*;
    use crate::{Precision, simd::tests::numbers};

    /// Keys of which some channels change from one to the next.
    fn keys(count: usize, head_dim: usize, share: f32) -> Vec<f32> {
        let (mut rows, which) = (numbers(count * head_dim, 5), numbers(count * head_dim, 6));
        for i in head_dim..rows.len() {
            if which[i].abs() > share {
                rows[i] = rows[i - head_dim];
            }
        }
        rows
    }

    fn all_pairs() -> impl Iterator<Item = (Precision, Pairs)> {
        let pairs = |precision| {
            let levels = Isa::available().into_iter().filter_map(move |simd| Pairs::of(simd, precision));
            levels.map(move |pairs| (precision, pairs))
        };
        [Precision::Int16, Precision::Bf16].into_iter().flat_map(pairs)
    }

    /// The scores of the keys from `skip` on of every block, and which there are.
    fn scores(
        pairs: Pairs,
        rows: &[f32],
        queries: &[f32],
        lanes: usize,
        skip: usize,
        limit: Option<f32>,
    ) -> (Vec<f32>, Vec<usize>) {
        let head_dim = queries.len() / lanes;
        let (streams, mut tile) = (pairs.streams(rows, head_dim), DeltaTile::default());
        pairs.set_tile(queries, lanes, &mut tile);
        let limits = limit.map(|limit| vec![limit; lanes]);
        let (mut all, mut which) = (Vec::new(), Vec::new());
        for (block, rows) in rows.chunks(BLOCK_TOKENS * head_dim).enumerate() {
            let mut out = vec![0.0; rows.len() / head_dim * lanes - skip * lanes];
            let mut kept = vec![9];
            pairs.delta_scores(&streams, block, skip, &tile, limits.as_deref(), &mut out, &mut kept);
            all.extend_from_slice(&out[..kept.len() * lanes]);
            which.extend(kept.iter().map(|key| block * BLOCK_TOKENS + skip + key));
        }
        (all, which)
    }

    const SHAPES: [(usize, usize, usize); 9] = [
        (1, 16, 2),
        (5, 32, 3),
        (64, 96, 200),
        (63, 64, 130),
        (96, 48, 17),
        (128, 128, 64),
        (7, 112, 65),
        (256, 80, 70),
        (64, 144, 70),
    ];

    #[test]
    fn every_size_agrees_with_f64_and_integers_to_the_bit() {
        for (precision, pairs) in all_pairs() {
            for (head_dim, lanes, count) in SHAPES {
                let (k, q) = (keys(count, head_dim, 0.4), numbers(head_dim * lanes, 3));
                for skip in [0, 1] {
                    let (got, which) = scores(pairs, &k, &q, lanes, skip, None);
                    assert_eq!(got.len(), which.len() * lanes);
                    assert_eq!(which.len(), count - skip * count.div_ceil(BLOCK_TOKENS));
                    // A product is off by the rounding of both factors.
                    let step = if precision == Precision::Int16 { 1.0 / 2048.0 } else { 1.0 / 256.0 };
                    for (row, key) in got.chunks(lanes).zip(&which) {
                        for (lane, score) in row.iter().enumerate() {
                            let term =
                                |j: usize| f64::from(k[key * head_dim + j]) * f64::from(q[j * lanes + lane]);
                            let expected: f64 = (0..head_dim).map(term).sum();
                            let error = (f64::from(*score) - expected).abs();
                            assert!(error < step * head_dim as f64, "{pairs:?} {head_dim} {lanes}");
                        }
                    }
                    if precision == Precision::Int16 {
                        let portable = Pairs::of(Isa::available()[0], Precision::Int16).unwrap();
                        assert_eq!((got, which), scores(portable, &k, &q, lanes, skip, None), "{pairs:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn survivors_are_the_keys_above_the_limit() {
        for (precision, pairs) in all_pairs() {
            for (head_dim, lanes, count) in SHAPES {
                let (k, q) = (keys(count, head_dim, 0.4), numbers(head_dim * lanes, 3));
                let (all, which) = scores(pairs, &k, &q, lanes, 0, None);
                for limit in [1e30, 0.6 * (head_dim as f32).sqrt(), 0.0, -1e30] {
                    let (got, kept) = scores(pairs, &k, &q, lanes, 0, Some(limit));
                    let above = |key: &&usize| all[*key * lanes..][..lanes].iter().any(|x| *x > limit);
                    let expected: Vec<usize> = which.iter().filter(above).copied().collect();
                    assert_eq!(kept, expected, "{pairs:?} {head_dim} {lanes} {limit}");
                    for (row, key) in got.chunks(lanes).zip(&kept) {
                        for (x, expected) in row.iter().zip(&all[key * lanes..]) {
                            // Of bf16 the limit has been taken off and added again.
                            let close = (x - expected).abs() <= 1e-5 * limit.abs().min(100.0);
                            let exact = precision == Precision::Int16 || limit.abs() > 1e20;
                            assert!(
                                if exact { x == expected || limit.abs() > 1e20 } else { close },
                                "{limit}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_drifts_within_a_block() {
        // Every channel moves with every key: the last key of a block is the sum of 64 differences.
        for (precision, pairs) in all_pairs() {
            let k: Vec<f32> = numbers(BLOCK_TOKENS, 1).iter().map(|x| 100.0 + x).collect();
            let (got, _) = scores(pairs, &k, &[1.0; 16], 16, BLOCK_TOKENS - 1, None);
            let last = k[BLOCK_TOKENS - 1];
            let step = if precision == Precision::Int16 { 101.0 / 16383.0 } else { 0.01 };
            assert!((got[0] - last).abs() <= step, "{precision:?}: {} for {last}", got[0]);
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        for (_, pairs) in all_pairs() {
            for head_dim in [1, 2, 63, 64, 128, 256] {
                // From one end of the range to the other.
                let k: Vec<f32> =
                    (0..4 * head_dim).map(|i| if i / head_dim % 2 == 0 { 3.0 } else { -3.0 }).collect();
                for limit in [None, Some(-1e30)] {
                    let (got, kept) = scores(pairs, &k, &vec![2.0; head_dim * 32], 32, 0, limit);
                    assert_eq!(kept, [0, 1, 2, 3]);
                    for (key, row) in got.chunks(32).enumerate() {
                        let expected = head_dim as f32 * if key % 2 == 0 { 6.0 } else { -6.0 };
                        let close =
                            |x: &f32| limit.is_some() && *x == 0.0 || (x / expected - 1.0).abs() < 1e-2;
                        assert!(row.iter().all(close), "{pairs:?} {head_dim}: {row:?}");
                    }
                }
            }
        }
    }
}
