//! The two products of attention on pairs of 16-bit numbers.
//!
//! An instruction that multiplies two 16-bit numbers with two others in every 32-bit lane, and adds both products to the lane's
//! sum, does up to twice the multiplications of an f32 FMA. The operands are therefore stored in pairs, a `u32` for two
//! neighbours along the summed axis: channels for the scores, keys for the values.
//!
//! On x86 the numbers are integers (`vpdpwssd` of AVX512-VNNI), with scales: one per key, one per query, and one per channel of
//! the values. They are as large as they can be without a sum of products ever leaving 32 bits ([`largest_code`]): 12 bits
//! and a sign, or more, for a head_dim of up to 128. Arm has no such instruction for integers of 16 bits, but one for bf16
//! (`bfdot`), which has 8 bits and needs no scales.
//!
//! [`avx512`] and [`neon`] have the instructions; the loops here do the products of integers in portable code.

pub(crate) mod operands;
pub(crate) mod tile;

use deltallm_core::BLOCK_TOKENS;
#[cfg(target_arch = "x86_64")]
use deltallm_simd::fearless_simd::Avx512;
#[cfg(target_arch = "aarch64")]
use deltallm_simd::features::Bf16Dot;
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::nearest_bits};

#[cfg(target_arch = "x86_64")]
use super::arch::pairs_avx512 as avx512;
#[cfg(target_arch = "aarch64")]
use super::arch::pairs_neon as neon;
use super::softmax::above;
use crate::Precision;
pub(crate) use operands::{LARGEST_WEIGHT, PairKeys, PairQueries, PairValues, key_len};

/// Codes of the values: a sum over a block stays below 2^31.
const LARGEST_VALUE: f32 = 4095.0;
const _: () = assert!(BLOCK_TOKENS as f64 * LARGEST_WEIGHT as f64 * (LARGEST_VALUE as f64) < 2147483648.0);

/// Products of one kind with one instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs {
    instructions: Instructions,
    /// For conversions.
    isa: Isa,
}

/// What multiplies.
#[derive(Debug, Clone, Copy)]
enum Instructions {
    /// Integers, in portable loops.
    Portable,
    /// Integers, with the instructions of [`avx512`].
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// bf16, with those of [`neon`].
    #[cfg(target_arch = "aarch64")]
    Neon(Bf16Dot),
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

/// The largest magnitude, in an order that vectors can follow.
#[inline(always)]
fn magnitude(row: &[f32]) -> f32 {
    let larger = |most: f32, x: f32| if x.abs() > most { x.abs() } else { most };
    let mut most = [0.0; 16];
    let (parts, rest) = row.as_chunks::<16>();
    for part in parts {
        for i in 0..16 {
            most[i] = larger(most[i], part[i]);
        }
    }
    most.iter().chain(rest).fold(0.0, |most, x| larger(most, *x))
}

/// The nearest integer to `x`, a 16-bit number, in two's complement.
fn code_of(x: f32) -> u16 {
    nearest_bits(x) as u16
}

impl Precision {
    /// Whether this instruction set multiplies numbers of this precision; otherwise f32 takes their place.
    pub fn is_multiplied_by(self, isa: Isa) -> bool {
        self == Self::F32 || Pairs::of(isa, self).is_some()
    }
}

impl Pairs {
    /// The 16-bit products of this precision, if the instruction set and the CPU have instructions for them (or are there for
    /// their answers and not for their speed).
    pub(crate) fn of(isa: Isa, precision: Precision) -> Option<Self> {
        let instructions = match (isa, precision) {
            (Isa::Scalar(_), Precision::Int16) => Instructions::Portable,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512(avx512), Precision::Int16) => Instructions::Avx512(avx512),
            #[cfg(target_arch = "aarch64")]
            (Isa::Neon(neon), Precision::Bf16) => Instructions::Neon(Bf16Dot::of(neon)?),
            _ => return None,
        };
        Some(Self { instructions, isa })
    }

    /// Appends keys, `[tokens, head_dim]`.
    pub(crate) fn push_keys(self, keys: &[f32], head_dim: usize, out: &mut PairKeys) {
        #[cfg(target_arch = "aarch64")]
        if matches!(self.instructions, Instructions::Neon(_)) {
            return neon::push_keys(keys, head_dim, out);
        }
        dispatch!(self.isa, simd => push_codes(simd, keys, head_dim, out));
    }

    /// Values, `[tokens, head_dim]`.
    pub(crate) fn values(self, values: &[f32], head_dim: usize) -> PairValues {
        #[cfg(target_arch = "aarch64")]
        if matches!(self.instructions, Instructions::Neon(_)) {
            return neon::values(values);
        }
        dispatch!(self.isa, simd => code_values(simd, values, head_dim))
    }

    /// Takes a tile of queries, `[head_dim, lanes]`.
    pub(crate) fn set_queries(self, queries: &[f32], lanes: usize, out: &mut PairQueries) {
        let PairQueries { pairs, scales } = out;
        scales.clear();
        scales.resize(lanes, 0.0);
        #[cfg(target_arch = "aarch64")]
        if matches!(self.instructions, Instructions::Neon(_)) {
            return neon::pack(queries, lanes, pairs);
        }
        dispatch!(self.isa, simd => magnitudes(simd, queries, scales));
        let largest = largest_code(queries.len() / lanes);
        scales.iter_mut().for_each(|most| *most = scale_of(*most, largest));
        let factors: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
        self.pack(queries, lanes, &factors, pairs);
    }

    /// Pairs of keys of a block of weights in 0..=1: from `[keys, lanes]` to `[keys / 2, lanes]`.
    pub(crate) fn weights(self, weights: &[f32], lanes: usize, out: &mut Vec<u32>) {
        #[cfg(target_arch = "aarch64")]
        if matches!(self.instructions, Instructions::Neon(_)) {
            return neon::pack(weights, lanes, out);
        }
        self.pack(weights, lanes, &vec![LARGEST_WEIGHT; lanes], out);
    }

    /// Pairs of codes: from rows `[rows, lanes]`, each lane times its factor, to `[rows / 2, lanes]`.
    fn pack(self, rows: &[f32], lanes: usize, factors: &[f32], out: &mut Vec<u32>) {
        out.resize((rows.len() / lanes).div_ceil(2) * lanes, 0);
        #[cfg(target_arch = "x86_64")]
        if let Instructions::Avx512(token) = self.instructions {
            return avx512::pack(token, rows, lanes, factors, out);
        }
        for (pair, out) in rows.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
            let (first, second) = pair.split_at(lanes);
            for (lane, (out, factor)) in out.iter_mut().zip(factors).enumerate() {
                let second = second.get(lane).map_or(0, |x| code_of(x * factor));
                *out = u32::from(code_of(first[lane] * factor)) | u32::from(second) << 16;
            }
        }
    }

    /// `out[i][lane] = keys[selected[i]] . queries[lane]`; with `thresholds` only the keys that are above them in any lane,
    /// packed to the front. `kept` gets the places among `selected` of the keys that are there.
    pub(crate) fn scores(
        self,
        keys: &PairKeys,
        selected: &[usize],
        queries: &PairQueries,
        thresholds: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        let lanes = queries.scales.len();
        kept.clear();
        match self.instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(token) => {
                return avx512::scores(token, keys, selected, queries, thresholds, out, kept);
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(token) => {
                return neon::scores(token, keys, selected, queries, thresholds, out, kept);
            }
            Instructions::Portable => {}
        }
        let len = queries.pairs.len() / lanes * 2;
        for (place, index) in selected.iter().enumerate() {
            let key = &keys.rows[index * len..][..len];
            let row = &mut out[kept.len() * lanes..][..lanes];
            for (lane, score) in row.iter_mut().enumerate() {
                let column = key.chunks_exact(2).zip(queries.pairs.iter().skip(lane).step_by(lanes));
                let sum = column.fold(0, |sum, (k, q)| add_products(sum, [k[0], k[1]], *q));
                *score = sum as f32 * (keys.scales[*index] * queries.scales[lane]);
            }
            if thresholds.is_none_or(|limits| row.iter().zip(limits).any(|(x, limit)| above(*x, *limit))) {
                kept.push(place);
            }
        }
    }

    /// Pairs of the values `selected`: from `[tokens, head_dim]` to `[selected / 2, head_dim]`.
    pub(crate) fn pair(self, values: &PairValues, selected: &[usize], head_dim: usize, out: &mut Vec<u32>) {
        out.resize(selected.len().div_ceil(2) * head_dim, 0);
        dispatch!(self.isa, simd => interleave(simd, &values.rows, selected, head_dim, out));
    }

    /// `out[channel][lane] += sum over the pairs of keys of values * weights`; `paired` are some of `values` as
    /// [`pair`](Self::pair) has them, `[keys / 2, head_dim]`, and `weights` `[keys / 2, lanes]`.
    pub(crate) fn accumulate(
        self,
        values: &PairValues,
        paired: &[u32],
        weights: &[u32],
        lanes: usize,
        out: &mut [f32],
    ) {
        let (head_dim, scales) = (out.len() / lanes, &values.scales[..]);
        match self.instructions {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(token) => {
                return avx512::accumulate(token, paired, scales, weights, lanes, out);
            }
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(token) => return neon::accumulate(token, paired, weights, lanes, out),
            Instructions::Portable => {}
        }
        for (channel, out) in out.chunks_exact_mut(lanes).enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                let values = paired.iter().skip(channel).step_by(head_dim);
                let column = values.zip(weights.iter().skip(lane).step_by(lanes));
                let halves = |pair: u32| [pair as u16, (pair >> 16) as u16];
                let sum = column.fold(0, |sum, (v, w)| add_products(sum, halves(*v), *w));
                *out += sum as f32 * (scales[channel] / LARGEST_WEIGHT);
            }
        }
    }
}

/// See [`Pairs::push_keys`]: codes, and a scale for each key.
#[inline(always)]
fn push_codes<S: Simd>(_: S, keys: &[f32], head_dim: usize, out: &mut PairKeys) {
    let (largest, len) = (largest_code(head_dim), key_len(head_dim));
    let start = out.rows.len();
    out.rows.resize(start + keys.len() / head_dim * len, 0);
    for (row, key) in out.rows[start..].chunks_exact_mut(len).zip(keys.chunks_exact(head_dim)) {
        let scale = scale_of(magnitude(key), largest);
        let factor = 1.0 / scale;
        row.iter_mut().zip(key).for_each(|(code, x)| *code = code_of(x * factor));
        out.scales.push(scale);
    }
}

/// See [`Pairs::values`]: codes, and a scale for each channel.
#[inline(always)]
fn code_values<S: Simd>(simd: S, values: &[f32], head_dim: usize) -> PairValues {
    let mut scales = vec![0.0; head_dim];
    magnitudes(simd, values, &mut scales);
    scales.iter_mut().for_each(|most| *most = scale_of(*most, LARGEST_VALUE));
    let factors: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
    let mut rows = vec![0; values.len()];
    for (codes, row) in rows.chunks_exact_mut(head_dim).zip(values.chunks_exact(head_dim)) {
        for ((code, x), factor) in codes.iter_mut().zip(row).zip(&factors) {
            *code = code_of(x * factor);
        }
    }
    PairValues { rows, scales }
}

/// See [`Pairs::pair`].
#[inline(always)]
fn interleave<S: Simd>(simd: S, rows: &[u16], selected: &[usize], head_dim: usize, out: &mut [u32]) {
    let (width, half) = (S::u16s::LEN, S::u16s::LEN / 2);
    let whole = head_dim / width * width;
    for (pair, out) in selected.chunks(2).zip(out.chunks_exact_mut(head_dim)) {
        let first = &rows[pair[0] * head_dim..][..head_dim];
        let Some(second) = pair.get(1) else {
            out.iter_mut().zip(first).for_each(|(out, a)| *out = u32::from(*a));
            continue;
        };
        let second = &rows[second * head_dim..][..head_dim];
        for start in (0..whole).step_by(width) {
            let a = S::u16s::from_slice(simd, &first[start..][..width]);
            let b = S::u16s::from_slice(simd, &second[start..][..width]);
            a.zip_low(b).bitcast::<S::u32s>().store_slice(&mut out[start..][..half]);
            a.zip_high(b).bitcast::<S::u32s>().store_slice(&mut out[start + half..][..half]);
        }
        for ((out, a), b) in out[whole..].iter_mut().zip(&first[whole..]).zip(&second[whole..]) {
            *out = u32::from(*a) | u32::from(*b) << 16;
        }
    }
}

/// The largest magnitude of every column.
#[inline(always)]
fn magnitudes<S: Simd>(_: S, rows: &[f32], most: &mut [f32]) {
    for row in rows.chunks_exact(most.len()) {
        for (most, x) in most.iter_mut().zip(row) {
            *most = if x.abs() > *most { x.abs() } else { *most };
        }
    }
}

/// `sum + a0 b0 + a1 b1`: one lane of `vpdpwssd`. The codes are such that it cannot overflow.
fn add_products(sum: i32, [a0, a1]: [u16; 2], b: u32) -> i32 {
    let product = |a: u16, b: u16| i32::from(a as i16) * i32::from(b as i16);
    sum + product(a0, b as u16) + product(a1, (b >> 16) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltallm_testing::numbers;

    struct Product {
        scores: Vec<f32>,
        kept: Vec<usize>,
        sums: Vec<f32>,
    }

    /// Scores of 7 skipped and `tokens` wanted keys, and the values weighted by numbers in 0..=1.
    fn product(pairs: Pairs, head_dim: usize, lanes: usize, tokens: usize, limit: Option<f32>) -> Product {
        let mut keys = PairKeys::default();
        pairs.push_keys(&numbers((tokens + 7) * head_dim, 1), head_dim, &mut keys);
        let values = pairs.values(&numbers(tokens * head_dim, 2), head_dim);
        let mut queries = PairQueries::default();
        pairs.set_queries(&numbers(head_dim * lanes, 3), lanes, &mut queries);
        let (mut scores, mut kept) = (vec![0.0; tokens * lanes], Vec::new());
        let limits = limit.map(|limit| vec![limit; lanes]);
        let selected: Vec<usize> = (7..tokens + 7).collect();
        pairs.scores(&keys, &selected, &queries, limits.as_deref(), &mut scores, &mut kept);
        scores.truncate(kept.len() * lanes);
        let all: Vec<usize> = (0..tokens).collect();
        let (mut paired, mut weights) = (Vec::new(), Vec::new());
        pairs.pair(&values, &all, head_dim, &mut paired);
        let positive: Vec<f32> = numbers(tokens * lanes, 4).iter().map(|x| x.abs()).collect();
        pairs.weights(&positive, lanes, &mut weights);
        let mut sums = vec![0.5; head_dim * lanes];
        pairs.accumulate(&values, &paired, &weights, lanes, &mut sums);
        Product { scores, kept, sums }
    }

    #[test]
    fn every_size_agrees_with_f64_and_integers_to_the_bit() {
        for precision in [Precision::Int16, Precision::Bf16] {
            for simd in Isa::available() {
                let Some(pairs) = Pairs::of(simd, precision) else { continue };
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
                        let portable = product(
                            Pairs::of(Isa::available()[0], Precision::Int16).unwrap(),
                            head_dim,
                            lanes,
                            tokens,
                            None,
                        );
                        assert_eq!((got.scores, got.kept), (portable.scores, portable.kept), "{simd}");
                    }
                }
            }
        }
    }

    /// Sums of values are those of the same integers, but for how their products with the scales are rounded.
    #[test]
    fn sums_of_values_are_those_of_the_portable_loops() {
        let portable = Pairs::of(Isa::available()[0], Precision::Int16).unwrap();
        for pairs in Isa::available().into_iter().filter_map(|simd| Pairs::of(simd, Precision::Int16)) {
            for (head_dim, lanes, tokens) in [(5, 32, 3), (64, 96, 64), (7, 112, 5)] {
                let sums = |pairs| product(pairs, head_dim, lanes, tokens, None).sums;
                for (sum, expected) in sums(pairs).iter().zip(&sums(portable)) {
                    assert!((sum - expected).abs() <= 1e-6 * (1.0 + expected.abs()), "{pairs:?}");
                }
            }
        }
    }

    #[test]
    fn survivors_are_the_rows_above_the_limit() {
        for precision in [Precision::Int16, Precision::Bf16] {
            for pairs in Isa::available().into_iter().filter_map(|simd| Pairs::of(simd, precision)) {
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

    /// The scale of the product is infinite, and the products cancel out.
    #[test]
    fn a_score_that_is_no_number_is_kept() {
        for pairs in Isa::available().into_iter().filter_map(|simd| Pairs::of(simd, Precision::Int16)) {
            // Numbers of lanes with a kernel for the test and without.
            for lanes in [16, 80] {
                let (mut keys, mut queries) = (PairKeys::default(), PairQueries::default());
                pairs.push_keys(&[1e30, -1e30], 2, &mut keys);
                pairs.set_queries(&vec![1e30; 2 * lanes], lanes, &mut queries);
                let (mut scores, mut kept) = (vec![0.0; lanes], Vec::new());
                pairs.scores(&keys, &[0], &queries, Some(&vec![0.0; lanes]), &mut scores, &mut kept);
                assert_eq!(kept, [0], "{pairs:?}, {lanes} lanes");
                assert!(scores.iter().all(|score| score.is_nan()), "{scores:?}");
            }
        }
    }

    #[test]
    fn the_largest_codes_do_not_overflow() {
        for head_dim in [1, 2, 63, 64, 80, 96, 128, 256, 1000] {
            let most = f64::from(largest_code(head_dim));
            assert!(most * most * head_dim as f64 <= f64::from(i32::MAX));
            for pairs in Isa::available().into_iter().filter_map(|simd| Pairs::of(simd, Precision::Int16)) {
                let (mut keys, mut queries) = (PairKeys::default(), PairQueries::default());
                pairs.push_keys(&vec![-3.0; head_dim], head_dim, &mut keys);
                pairs.set_queries(&vec![2.0; head_dim * 16], 16, &mut queries);
                let mut scores = vec![0.0; 16];
                pairs.scores(&keys, &[0], &queries, None, &mut scores, &mut Vec::new());
                let expected = -6.0 * head_dim as f32;
                assert!(scores.iter().all(|x| (x / expected - 1.0).abs() < 1e-3), "{scores:?}");
            }
        }
    }

    #[test]
    fn zeros_denormals_and_huge_numbers_have_scales() {
        for x in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e30] {
            let mut keys = PairKeys::default();
            let pairs = Pairs::of(Isa::available()[0], Precision::Int16).unwrap();
            pairs.push_keys(&[x, -x], 2, &mut keys);
            let values = pairs.values(&[x, -x], 2);
            for (rows, scales) in [(keys.rows, keys.scales), (values.rows, values.scales)] {
                let back = f32::from(rows[0] as i16) * scales[0];
                assert!(scales[0].is_finite() && (back - x).abs() <= x / 4000.0 + f32::MIN_POSITIVE, "{x}");
                assert_eq!(rows[0] as i16, -(rows[1] as i16));
            }
        }
    }
}
