//! The two products of attention on pairs of 16-bit numbers.
//!
//! The dot-product instructions of AVX-512 multiply two 16-bit numbers with two others in every 32-bit lane and add both
//! products to the lane's sum: `vpdpwssd` (AVX512-VNNI) for integers, `vdpbf16ps` (AVX512-BF16) for bf16. That is up to
//! twice the multiplications of an f32 FMA. The operands are therefore stored in pairs, a `u32` for two neighbours along
//! the summed axis: channels for the scores, keys for the values.
//!
//! Integers come with scales: one per key, one per query, and one per channel of a block of values. They are as large as
//! they can be without a sum of products ever leaving 32 bits ([`largest_code`]): 12 bits and a sign, or more, for a
//! head_dim of up to 128, where bf16 has 8 bits.
//!
//! [`avx512`] has the instructions; the loops here do the same in portable code.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that read and write memory; every block says why it is sound")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
mod avx512;

use deltallm_core::BLOCK_TOKENS;
use half::bf16;

/// What the 16 bits mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairKind {
    /// Integer codes with a scale.
    Int16,
    /// bfloat16.
    Bf16,
}

/// Codes of the weights, which are at most 1.
const LARGEST_WEIGHT: f32 = 8191.0;

/// Codes of the values: a sum over a block stays below 2^31.
const LARGEST_VALUE: f32 = 4095.0;
const _: () = assert!(BLOCK_TOKENS as f64 * LARGEST_WEIGHT as f64 * (LARGEST_VALUE as f64) < 2147483648.0);

/// Products of one kind at one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs {
    kind: PairKind,
    /// Whether the CPU has the instructions of [`avx512`] for this kind; only [`Pairs::avx512`] sets it.
    avx512: bool,
}

/// Keys or values of one kv head in 16 bits.
#[derive(Debug, Default)]
pub(crate) struct PairRows {
    /// Codes, or bits of bf16: `[tokens, head_dim]`, keys padded to whole pairs.
    pub(crate) rows: Vec<u16>,
    /// What to multiply codes by: for keys one number per token, for values one per block and channel. Empty for bf16.
    pub(crate) scales: Vec<f32>,
}

/// A tile of queries in pairs of channels.
#[derive(Debug, Default)]
pub(crate) struct PairQueries {
    /// `[head_dim / 2, lanes]`.
    pairs: Vec<u32>,
    /// One per lane.
    scales: Vec<f32>,
}

/// The largest integer of which `terms` squares add up to less than 2^31.
fn largest_code(terms: usize) -> f32 {
    (f64::from(i32::MAX) / terms.max(1) as f64).sqrt().floor().min(32767.0) as f32
}

/// The scale with which `most` becomes the code `largest`.
fn scale_of(most: f32, largest: f32) -> f32 {
    // Not zero, which has no inverse: for all-zero rows, and for numbers so small that they come out as zero.
    (most / largest).max(f32::MIN_POSITIVE)
}

/// The nearest integer to `x`, a 16-bit number, in two's complement.
fn code_of(x: f32) -> u16 {
    // Adding 1.5 * 2^23 leaves the integer in the low bits; unlike `round` it needs no instruction beyond SSE2.
    (x + 12_582_912.0).to_bits() as u16
}

impl Pairs {
    /// Portable loops.
    pub(super) fn portable(kind: PairKind) -> Self {
        Self { kind, avx512: false }
    }

    /// The instructions for this kind, if the CPU has them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn avx512(kind: PairKind) -> Option<Self> {
        avx512::detect(kind).then_some(Self { kind, avx512: true })
    }

    /// 16-bit numbers of a key of `head_dim` channels.
    pub(crate) fn key_len(head_dim: usize) -> usize {
        head_dim.next_multiple_of(2)
    }

    /// Appends keys, `[tokens, head_dim]`.
    pub(crate) fn push_keys(self, keys: &[f32], head_dim: usize, out: &mut PairRows) {
        let largest = largest_code(head_dim);
        for key in keys.chunks_exact(head_dim) {
            let start = out.rows.len();
            out.rows.resize(start + Self::key_len(head_dim), 0);
            let row = out.rows[start..].iter_mut().zip(key);
            match self.kind {
                PairKind::Int16 => {
                    let scale = scale_of(key.iter().fold(0.0, |most, x| x.abs().max(most)), largest);
                    let factor = 1.0 / scale;
                    row.for_each(|(code, x)| *code = code_of(x * factor));
                    out.scales.push(scale);
                }
                PairKind::Bf16 => row.for_each(|(bits, x)| *bits = bf16::from_f32(*x).to_bits()),
            }
        }
    }

    /// Appends one block of values, `[tokens, head_dim]`.
    pub(crate) fn push_values(self, values: &[f32], head_dim: usize, out: &mut PairRows) {
        if self.kind == PairKind::Bf16 {
            out.rows.extend(values.iter().map(|x| bf16::from_f32(*x).to_bits()));
            return;
        }
        let start = out.scales.len();
        out.scales.resize(start + head_dim, 0.0);
        let scales = &mut out.scales[start..];
        for row in values.chunks_exact(head_dim) {
            scales.iter_mut().zip(row).for_each(|(most, x)| *most = x.abs().max(*most));
        }
        scales.iter_mut().for_each(|most| *most = scale_of(*most, LARGEST_VALUE));
        let factors: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        for row in values.chunks_exact(head_dim) {
            out.rows.extend(row.iter().zip(&factors).map(|(x, factor)| code_of(x * factor)));
        }
    }

    /// Takes a tile of queries, `[head_dim, lanes]`.
    pub(crate) fn set_queries(self, queries: &[f32], lanes: usize, out: &mut PairQueries) {
        let PairQueries { pairs, scales } = out;
        scales.clear();
        scales.resize(lanes, 0.0);
        if self.kind == PairKind::Int16 {
            for row in queries.chunks_exact(lanes) {
                scales.iter_mut().zip(row).for_each(|(most, x)| *most = x.abs().max(*most));
            }
            let largest = largest_code(queries.len() / lanes);
            scales.iter_mut().for_each(|most| *most = scale_of(*most, largest));
        }
        let factors: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        self.pack(queries, lanes, &factors, pairs);
    }

    /// Pairs of keys of a block of weights in 0..=1: from `[keys, lanes]` to `[keys / 2, lanes]`.
    pub(crate) fn weights(self, weights: &[f32], lanes: usize, out: &mut Vec<u32>) {
        self.pack(weights, lanes, &vec![LARGEST_WEIGHT; lanes], out);
    }

    /// Pairs of rows: `[rows, lanes]`, each lane times its factor if these are integers, to `[rows / 2, lanes]`.
    fn pack(self, rows: &[f32], lanes: usize, factors: &[f32], out: &mut Vec<u32>) {
        out.clear();
        out.resize((rows.len() / lanes).div_ceil(2) * lanes, 0);
        #[cfg(target_arch = "x86_64")]
        if self.avx512 && lanes.is_multiple_of(16) {
            return avx512::pack(self.kind, rows, lanes, factors, out);
        }
        for (pair, out) in rows.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
            let (first, second) = pair.split_at(lanes);
            for (lane, (out, factor)) in out.iter_mut().zip(factors).enumerate() {
                let number = |x: f32| match self.kind {
                    PairKind::Int16 => code_of(x * factor),
                    PairKind::Bf16 => bf16::from_f32(x).to_bits(),
                };
                let second = second.get(lane).map_or(0, |x| number(*x));
                *out = u32::from(number(first[lane])) | u32::from(second) << 16;
            }
        }
    }

    /// `out[key][lane] = keys[key] . queries[lane]` for `[tokens]` keys; with `thresholds` only the keys that are above
    /// them in any lane, packed to the front. `kept` gets the numbers of the keys that are there.
    pub(crate) fn scores(
        self,
        keys: &PairRows,
        tokens: std::ops::Range<usize>,
        queries: &PairQueries,
        thresholds: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        let lanes = queries.scales.len();
        let pairs = queries.pairs.len() / lanes;
        let scales = if self.kind == PairKind::Int16 { &keys.scales[tokens.clone()] } else { &[] };
        let keys = &keys.rows[tokens.start * 2 * pairs..tokens.end * 2 * pairs];
        kept.clear();
        #[cfg(target_arch = "x86_64")]
        if self.avx512 && lanes.is_multiple_of(16) {
            return avx512::scores(self.kind, keys, scales, queries, thresholds, out, kept);
        }
        for (token, key) in keys.chunks_exact(2 * pairs).enumerate() {
            let row = &mut out[kept.len() * lanes..][..lanes];
            for (lane, score) in row.iter_mut().enumerate() {
                let column = key.chunks_exact(2).zip(queries.pairs.iter().skip(lane).step_by(lanes));
                *score = match self.kind {
                    PairKind::Int16 => {
                        let sum = column.fold(0, |sum, (k, q)| dot_int16(sum, [k[0], k[1]], *q));
                        sum as f32 * (scales[token] * queries.scales[lane])
                    }
                    PairKind::Bf16 => column.fold(0.0, |sum, (k, q)| dot_bf16(sum, [k[0], k[1]], *q)),
                };
            }
            if thresholds.is_none_or(|thresholds| row.iter().zip(thresholds).any(|(x, limit)| x > limit)) {
                kept.push(token);
            }
        }
    }

    /// `out[channel][lane] += sum over the pairs of keys of values * weights`; `values` is `[keys / 2, head_dim]`,
    /// `weights` `[keys / 2, lanes]`, `scales` `[head_dim]` for integers.
    pub(crate) fn accumulate(
        self,
        values: &[u32],
        scales: &[f32],
        weights: &[u32],
        lanes: usize,
        out: &mut [f32],
    ) {
        let head_dim = out.len() / lanes;
        #[cfg(target_arch = "x86_64")]
        if self.avx512 && lanes.is_multiple_of(16) {
            return avx512::accumulate(self.kind, values, scales, weights, lanes, out);
        }
        for (channel, out) in out.chunks_exact_mut(lanes).enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                let values = values.iter().skip(channel).step_by(head_dim);
                let column = values.zip(weights.iter().skip(lane).step_by(lanes));
                let halves = |pair: u32| [pair as u16, (pair >> 16) as u16];
                *out += match self.kind {
                    PairKind::Int16 => {
                        let sum = column.fold(0, |sum, (v, w)| dot_int16(sum, halves(*v), *w));
                        sum as f32 * (scales[channel] / LARGEST_WEIGHT)
                    }
                    PairKind::Bf16 => column.fold(0.0, |sum, (v, w)| dot_bf16(sum, halves(*v), *w)),
                };
            }
        }
    }
}

/// Pairs of keys of the values at `kept`: from `[tokens, head_dim]` to `[kept / 2, head_dim]`.
pub(crate) fn pair_values(values: &[u16], head_dim: usize, kept: &[usize], out: &mut Vec<u32>) {
    out.clear();
    for pair in kept.chunks(2) {
        let row = |token: usize| &values[token * head_dim..][..head_dim];
        let first = row(pair[0]).iter();
        match pair.get(1) {
            Some(second) => {
                out.extend(first.zip(row(*second)).map(|(a, b)| u32::from(*a) | u32::from(*b) << 16));
            }
            None => out.extend(first.map(|a| u32::from(*a))),
        }
    }
}

/// `sum + a0 b0 + a1 b1`: one lane of `vpdpwssd`. The codes are such that it cannot overflow.
fn dot_int16(sum: i32, [a0, a1]: [u16; 2], b: u32) -> i32 {
    let product = |a: u16, b: u16| i32::from(a as i16) * i32::from(b as i16);
    sum + product(a0, b as u16) + product(a1, (b >> 16) as u16)
}

/// `sum + a1 b1 + a0 b0`: one lane of `vdpbf16ps`, up to the rounding in between.
fn dot_bf16(sum: f32, [a0, a1]: [u16; 2], b: u32) -> f32 {
    let number = |bits: u16| bf16::from_bits(bits).to_f32();
    let sum = number(a1).mul_add(number((b >> 16) as u16), sum);
    number(a0).mul_add(number(b as u16), sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Precision, simd::SimdLevel};

    /// Numbers between -1 and 1 that look random.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    struct Product {
        scores: Vec<f32>,
        kept: Vec<usize>,
        sums: Vec<f32>,
    }

    /// Scores of 7 skipped and `tokens` wanted keys, and the values weighted by numbers in 0..=1.
    fn product(pairs: Pairs, head_dim: usize, lanes: usize, tokens: usize, limit: Option<f32>) -> Product {
        let (mut keys, mut values) = (PairRows::default(), PairRows::default());
        pairs.push_keys(&numbers((tokens + 7) * head_dim, 1), head_dim, &mut keys);
        pairs.push_values(&numbers(tokens * head_dim, 2), head_dim, &mut values);
        let mut queries = PairQueries::default();
        pairs.set_queries(&numbers(head_dim * lanes, 3), lanes, &mut queries);
        let (mut scores, mut kept) = (vec![0.0; tokens * lanes], Vec::new());
        let limits = limit.map(|limit| vec![limit; lanes]);
        pairs.scores(&keys, 7..tokens + 7, &queries, limits.as_deref(), &mut scores, &mut kept);
        scores.truncate(kept.len() * lanes);
        let all: Vec<usize> = (0..tokens).collect();
        let (mut paired, mut weights) = (Vec::new(), Vec::new());
        pair_values(&values.rows, head_dim, &all, &mut paired);
        let positive: Vec<f32> = numbers(tokens * lanes, 4).iter().map(|x| x.abs()).collect();
        pairs.weights(&positive, lanes, &mut weights);
        let mut sums = vec![0.5; head_dim * lanes];
        pairs.accumulate(&paired, &values.scales, &weights, lanes, &mut sums);
        Product { scores, kept, sums }
    }

    #[test]
    fn every_size_agrees_with_f64_and_integers_to_the_bit() {
        for precision in [Precision::Int16, Precision::Bf16] {
            for simd in SimdLevel::available() {
                let Some(pairs) = simd.pairs(precision) else { continue };
                for (head_dim, lanes, tokens) in [
                    (1, 16, 1),
                    (5, 32, 3),
                    (64, 96, 64),
                    (80, 64, 63),
                    (96, 48, 17),
                    (128, 128, 64),
                    (7, 112, 5),
                ] {
                    let got = product(pairs, head_dim, lanes, tokens, None);
                    let (k, v) = (numbers((tokens + 7) * head_dim, 1), numbers(tokens * head_dim, 2));
                    let (q, w) = (numbers(head_dim * lanes, 3), numbers(tokens * lanes, 4));
                    // A product is off by the rounding of both factors.
                    let step = if precision == Precision::Int16 { 1.0 / 4095.0 } else { 1.0 / 256.0 };
                    for (i, score) in got.scores.iter().enumerate() {
                        let (token, lane) = (i / lanes + 7, i % lanes);
                        let term =
                            |j: usize| f64::from(k[token * head_dim + j]) * f64::from(q[j * lanes + lane]);
                        let expected: f64 = (0..head_dim).map(term).sum();
                        let tolerance = step * head_dim as f64;
                        assert!((f64::from(*score) - expected).abs() < tolerance, "{simd} {precision:?}");
                    }
                    for (i, sum) in got.sums.iter().enumerate() {
                        let (channel, lane) = (i / lanes, i % lanes);
                        let term = |t: usize| {
                            f64::from(v[t * head_dim + channel]) * f64::from(w[t * lanes + lane].abs())
                        };
                        let expected: f64 = 0.5 + (0..tokens).map(term).sum::<f64>();
                        assert!(
                            (f64::from(*sum) - expected).abs() < step * tokens as f64,
                            "{simd} {precision:?}"
                        );
                    }
                    if precision == Precision::Int16 {
                        let portable =
                            product(Pairs::portable(PairKind::Int16), head_dim, lanes, tokens, None);
                        assert_eq!((got.scores, got.kept), (portable.scores, portable.kept), "{simd}");
                    }
                }
            }
        }
    }

    #[test]
    fn survivors_are_the_rows_above_the_limit() {
        for precision in [Precision::Int16, Precision::Bf16] {
            for pairs in SimdLevel::available().into_iter().filter_map(|simd| simd.pairs(precision)) {
                for (head_dim, lanes, tokens) in
                    [(64, 96, 64), (64, 64, 61), (32, 16, 9), (16, 48, 10), (8, 32, 64)]
                {
                    let all = product(pairs, head_dim, lanes, tokens, None);
                    let limit = 0.3 * (head_dim as f32).sqrt();
                    let some = product(pairs, head_dim, lanes, tokens, Some(limit));
                    let above = |row: &[f32]| row.iter().any(|x| *x > limit);
                    let rows = || all.scores.chunks_exact(lanes).enumerate().filter(|(_, row)| above(row));
                    assert_eq!(some.kept, rows().map(|(token, _)| token).collect::<Vec<_>>());
                    assert_eq!(some.scores, rows().flat_map(|(_, row)| row.to_vec()).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        for head_dim in [1, 2, 63, 64, 80, 96, 128, 256, 1000] {
            let most = f64::from(largest_code(head_dim));
            assert!(most * most * head_dim as f64 <= f64::from(i32::MAX));
            for pairs in SimdLevel::available().into_iter().filter_map(|simd| simd.pairs(Precision::Int16)) {
                let (mut keys, mut queries) = (PairRows::default(), PairQueries::default());
                pairs.push_keys(&vec![-3.0; head_dim], head_dim, &mut keys);
                pairs.set_queries(&vec![2.0; head_dim * 16], 16, &mut queries);
                let mut scores = vec![0.0; 16];
                pairs.scores(&keys, 0..1, &queries, None, &mut scores, &mut Vec::new());
                let expected = -6.0 * head_dim as f32;
                assert!(scores.iter().all(|x| (x / expected - 1.0).abs() < 1e-3), "{scores:?}");
            }
        }
    }

    #[test]
    fn zeros_denormals_and_huge_numbers_have_scales() {
        for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e30] {
            let (mut keys, mut values) = (PairRows::default(), PairRows::default());
            let pairs = Pairs::portable(PairKind::Int16);
            pairs.push_keys(&[x, -x], 2, &mut keys);
            pairs.push_values(&[x, -x], 2, &mut values);
            for rows in [keys, values] {
                let back = f32::from(rows.rows[0] as i16) * rows.scales[0];
                assert!(
                    rows.scales[0].is_finite() && (back - x).abs() <= x / 4000.0 + f32::MIN_POSITIVE,
                    "{x}"
                );
                assert_eq!(rows.rows[0] as i16, -(rows.rows[1] as i16));
            }
        }
    }
}
