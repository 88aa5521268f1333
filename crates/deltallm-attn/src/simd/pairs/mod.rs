//! The two products of attention on pairs of 16-bit numbers.
//!
//! The dot-product instructions of AVX-512 multiply two 16-bit numbers with two others in every 32-bit lane and add both
//! products to the lane's sum: `vpdpwssd` (AVX512-VNNI) for integers, `vdpbf16ps` (AVX512-BF16) for bf16. That is up to
//! twice the multiplications of an f32 FMA. The operands are therefore stored in pairs, a `u32` for two neighbours along
//! the summed axis: channels for the scores, keys for the values.
//!
//! Integers come with scales: one per key, one per query, and one per channel of the values. They are as large as
//! they can be without a sum of products ever leaving 32 bits ([`largest_code`]): 12 bits and a sign, or more, for a
//! head_dim of up to 128, where bf16 has 8 bits.
//!
//! Arm's bf16 extension has the same for bf16 (`bfdot`), and nothing like it for integers of 16 bits.
//!
//! [`avx512`] and [`neon`] have the instructions; the loops here do the same in portable code. [`sparse`] has the sparse product.

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that read and write memory; every block says why it is sound")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
mod avx512;
#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "intrinsics that read and write memory; every block says why it is sound")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
mod neon;
mod sparse;

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};
use half::bf16;

use super::softmax::above;
use crate::Precision;
pub(crate) use sparse::{DeltaTile, PairStreams};

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

/// Products of one kind with one instruction set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pairs {
    kind: PairKind,
    dots: Dots,
    /// For conversions.
    isa: Isa,
}

/// What multiplies.
#[derive(Debug, Clone, Copy)]
enum Dots {
    /// Portable loops.
    Portable,
    /// The instructions of [`avx512`] for the kind: only where they were detected.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Those of [`neon`], for bf16: only where they were detected.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// What a product `c = a b` is made of besides the rows of `a`, which is broadcast pair by pair; `b` is read in vectors.
#[derive(Clone, Copy)]
struct Operands<'a> {
    /// From one pair of a row of `a` to the next.
    pair_stride: usize,
    /// `[depth, lanes]`.
    b: &'a [u32],
    lanes: usize,
    depth: usize,
}

/// Keys of one kv head in 16 bits.
#[derive(Debug, Default)]
pub(crate) struct PairKeys {
    /// Codes, or bits of bf16: `[tokens, head_dim]`, padded to whole pairs.
    rows: Vec<u16>,
    /// What to multiply the codes of a token by. Empty for bf16.
    scales: Vec<f32>,
}

/// Values of one kv head in 16 bits.
#[derive(Debug, Default)]
pub(crate) struct PairValues {
    /// Codes, or bits of bf16: `[tokens, head_dim]`.
    rows: Vec<u16>,
    /// What to multiply the codes of a channel by. Empty for bf16.
    scales: Vec<f32>,
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
    // Adding 1.5 * 2^23 leaves the integer in the low bits; unlike `round` it needs no instruction beyond SSE2.
    (x + 12_582_912.0).to_bits() as u16
}

impl Pairs {
    /// The 16-bit products of this precision, if the instruction set and the CPU have instructions for them (or are there for
    /// their answers and not for their speed).
    pub(crate) fn of(isa: Isa, precision: Precision) -> Option<Self> {
        let kind = match precision {
            Precision::F32 => return None,
            Precision::Bf16 => PairKind::Bf16,
            Precision::Int16 => PairKind::Int16,
        };
        let dots = match isa {
            Isa::Scalar(_) => Dots::Portable,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) if avx512::detect(kind) => Dots::Avx512,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) if kind == PairKind::Bf16 && neon::detect() => Dots::Neon,
            _ => return None,
        };
        Some(Self { kind, dots, isa })
    }

    /// 16-bit numbers of a key of `head_dim` channels.
    pub(crate) fn key_len(head_dim: usize) -> usize {
        head_dim.next_multiple_of(2)
    }

    /// Appends keys, `[tokens, head_dim]`.
    pub(crate) fn push_keys(self, keys: &[f32], head_dim: usize, out: &mut PairKeys) {
        dispatch!(self.isa, simd => self.code_keys(simd, keys, head_dim, out));
    }

    #[inline(always)]
    fn code_keys<S: Simd>(self, _: S, keys: &[f32], head_dim: usize, out: &mut PairKeys) {
        let (largest, len) = (largest_code(head_dim), Self::key_len(head_dim));
        let start = out.rows.len();
        out.rows.resize(start + keys.len() / head_dim * len, 0);
        for (row, key) in out.rows[start..].chunks_exact_mut(len).zip(keys.chunks_exact(head_dim)) {
            match self.kind {
                PairKind::Int16 => {
                    let scale = scale_of(magnitude(key), largest);
                    let factor = 1.0 / scale;
                    row.iter_mut().zip(key).for_each(|(code, x)| *code = code_of(x * factor));
                    out.scales.push(scale);
                }
                PairKind::Bf16 => {
                    row.iter_mut().zip(key).for_each(|(bits, x)| *bits = bf16::from_f32(*x).to_bits())
                }
            }
        }
    }

    /// Values, `[tokens, head_dim]`.
    pub(crate) fn values(self, values: &[f32], head_dim: usize) -> PairValues {
        let mut out = PairValues::default();
        dispatch!(self.isa, simd => self.code_values(simd, values, head_dim, &mut out));
        out
    }

    #[inline(always)]
    fn code_values<S: Simd>(self, simd: S, values: &[f32], head_dim: usize, out: &mut PairValues) {
        out.rows.resize(values.len(), 0);
        if self.kind == PairKind::Bf16 {
            return out
                .rows
                .iter_mut()
                .zip(values)
                .for_each(|(bits, x)| *bits = bf16::from_f32(*x).to_bits());
        }
        out.scales.resize(head_dim, 0.0);
        magnitudes(simd, values, &mut out.scales);
        out.scales.iter_mut().for_each(|most| *most = scale_of(*most, LARGEST_VALUE));
        let factors: Vec<f32> = out.scales.iter().map(|scale| 1.0 / scale).collect();
        for (codes, row) in out.rows.chunks_exact_mut(head_dim).zip(values.chunks_exact(head_dim)) {
            for ((code, x), factor) in codes.iter_mut().zip(row).zip(&factors) {
                *code = code_of(x * factor);
            }
        }
    }

    /// Takes a tile of queries, `[head_dim, lanes]`.
    pub(crate) fn set_queries(self, queries: &[f32], lanes: usize, out: &mut PairQueries) {
        let PairQueries { pairs, scales } = out;
        scales.clear();
        scales.resize(lanes, 0.0);
        if self.kind == PairKind::Int16 {
            dispatch!(self.isa, simd => magnitudes(simd, queries, scales));
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
        out.resize((rows.len() / lanes).div_ceil(2) * lanes, 0);
        #[cfg(target_arch = "x86_64")]
        if matches!(self.dots, Dots::Avx512) && lanes.is_multiple_of(16) {
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

    /// `out[i][lane] = keys[picks[i]] . queries[lane]`; with `thresholds` only the keys that are above them in any lane,
    /// packed to the front. `kept` gets the places among `picks` of the keys that are there.
    pub(crate) fn scores(
        self,
        keys: &PairKeys,
        picks: &[usize],
        queries: &PairQueries,
        thresholds: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        let lanes = queries.scales.len();
        kept.clear();
        match self.dots {
            #[cfg(target_arch = "x86_64")]
            Dots::Avx512 if lanes.is_multiple_of(16) => {
                return avx512::scores(self.kind, keys, picks, queries, thresholds, out, kept);
            }
            #[cfg(target_arch = "aarch64")]
            Dots::Neon if lanes.is_multiple_of(4) => {
                return neon::scores(keys, picks, queries, thresholds, out, kept);
            }
            _ => {}
        }
        let len = queries.pairs.len() / lanes * 2;
        for (place, pick) in picks.iter().enumerate() {
            let key = &keys.rows[pick * len..][..len];
            let row = &mut out[kept.len() * lanes..][..lanes];
            for (lane, score) in row.iter_mut().enumerate() {
                let column = key.chunks_exact(2).zip(queries.pairs.iter().skip(lane).step_by(lanes));
                *score = match self.kind {
                    PairKind::Int16 => {
                        let sum = column.fold(0, |sum, (k, q)| dot_int16(sum, [k[0], k[1]], *q));
                        sum as f32 * (keys.scales[*pick] * queries.scales[lane])
                    }
                    PairKind::Bf16 => column.fold(0.0, |sum, (k, q)| dot_bf16(sum, [k[0], k[1]], *q)),
                };
            }
            if thresholds.is_none_or(|limits| row.iter().zip(limits).any(|(x, limit)| above(*x, *limit))) {
                kept.push(place);
            }
        }
    }

    /// Pairs of the values `picks`: from `[tokens, head_dim]` to `[picks / 2, head_dim]`.
    pub(crate) fn pair(self, values: &PairValues, picks: &[usize], head_dim: usize, out: &mut Vec<u32>) {
        out.resize(picks.len().div_ceil(2) * head_dim, 0);
        dispatch!(self.isa, simd => interleave(simd, &values.rows, picks, head_dim, out));
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
        match self.dots {
            #[cfg(target_arch = "x86_64")]
            Dots::Avx512 if lanes.is_multiple_of(16) => {
                return avx512::accumulate(self.kind, paired, scales, weights, lanes, out);
            }
            #[cfg(target_arch = "aarch64")]
            Dots::Neon if lanes.is_multiple_of(4) => return neon::accumulate(paired, weights, lanes, out),
            _ => {}
        }
        for (channel, out) in out.chunks_exact_mut(lanes).enumerate() {
            for (lane, out) in out.iter_mut().enumerate() {
                let values = paired.iter().skip(channel).step_by(head_dim);
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

/// Moves the rows of scores that are above a limit to the front.
fn keep_above(limits: &[f32], out: &mut [f32], kept: &mut Vec<usize>) {
    let (lanes, mut count) = (limits.len(), 0);
    kept.retain(|&row| {
        let keep = out[row * lanes..][..lanes].iter().zip(limits).any(|(x, limit)| above(*x, *limit));
        if keep {
            out.copy_within(row * lanes..(row + 1) * lanes, count * lanes);
            count += 1;
        }
        keep
    });
}

/// See [`Pairs::pair`].
#[inline(always)]
fn interleave<S: Simd>(simd: S, rows: &[u16], picks: &[usize], head_dim: usize, out: &mut [u32]) {
    let (width, half) = (S::u16s::LEN, S::u16s::LEN / 2);
    let whole = head_dim / width * width;
    for (pair, out) in picks.chunks(2).zip(out.chunks_exact_mut(head_dim)) {
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
    use crate::{Precision, simd::tests::numbers};

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
        let picks: Vec<usize> = (7..tokens + 7).collect();
        pairs.scores(&keys, &picks, &queries, limits.as_deref(), &mut scores, &mut kept);
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
