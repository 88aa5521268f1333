//! Scores of delta-coded keys in 8 bits, with AVX-512: the key stays in registers as bytes, one expand instruction a token
//! brings it up to date, and the integer dot instruction multiplies it with queries in 16 bits.
//!
//! The queries, times the steps of the channels, are rounded to `scale * code` with codes within +-32767. A score is off by at most
//! `scale / 2 * sum |key code|`, about 3e-5 of its usual size: as little as the rounding of f16 keys, and far less than
//! what the thresholds allow. The sums are exact: a product is below 2^22, so 512 channels stay below 2^31.

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use fearless_simd::{Avx512, f32x4, f32x16, i8x64, i16x32, kernel, mask8x64, prelude::*};

use super::{
    expand::{Masked, Packed, padded},
    lanes::{ToScore, expand_and_score},
};
use crate::decode::BLOCK;

/// See [`super::lanes::Lanes::int8_scores`].
#[inline(always)]
pub(super) fn scores(simd: Avx512, block: Masked<i8>, skip: usize, to: ToScore, keys: &mut Vec<i8>) {
    match block.frame.len().div_ceil(64) {
        1 => all_heads::<1>(simd, block, skip, to),
        2 => all_heads::<2>(simd, block, skip, to),
        // No model has such heads.
        _ => expand_and_score(simd, block, skip, to, keys),
    }
}

/// Keys of `W` registers.
#[inline(always)]
fn all_heads<const W: usize>(simd: Avx512, block: Masked<i8>, skip: usize, to: ToScore) {
    let heads = to.queries.len() / to.channels;
    let mut head = 0;
    while head < heads {
        let pass = (heads - head).div_ceil((heads - head).div_ceil(4));
        let queries = &to.queries[head * to.channels..][..pass * to.channels];
        let out = &mut to.out[head * BLOCK..];
        match pass {
            1 => panel::<W, 1>(simd, block, skip, queries, out),
            2 => panel::<W, 2>(simd, block, skip, queries, out),
            3 => panel::<W, 3>(simd, block, skip, queries, out),
            _ => panel::<W, 4>(simd, block, skip, queries, out),
        }
        head += pass;
    }
}

/// `G` heads, four keys at a time so that the sums over the lanes are shared.
#[inline(always)]
fn panel<const W: usize, const G: usize>(
    simd: Avx512,
    block: Masked<i8>,
    skip: usize,
    queries: &[f32],
    out: &mut [f32],
) {
    let (mut codes, mut scales) = ([[[0_i16; 64]; W]; G], [0.0; G]);
    let channels = queries.len() / G;
    for ((query, codes), scale) in queries.chunks_exact(channels).zip(&mut codes).zip(&mut scales) {
        *scale = to_codes(simd, query, codes.as_flattened_mut());
    }
    let mut factors = [[[i16x32::splat(simd, 0); 2]; W]; G];
    for (factors, codes) in factors.iter_mut().zip(&codes) {
        for (factors, codes) in factors.iter_mut().zip(codes) {
            let (low, high) = codes.split_at(32);
            *factors = [i16x32::from_slice(simd, low), i16x32::from_slice(simd, high)];
        }
    }

    let mut key = [i8x64::splat(simd, 0); W];
    for (word, key) in key.iter_mut().enumerate() {
        *key = padded(simd, &block.frame[word * 64..]);
    }
    let values = Packed::new(block.values);
    let (tokens, mut start) = (block.tokens(), 0);
    for first in (0..tokens).step_by(4) {
        let mut sums = [[zero(simd); 4]; G];
        for i in 0..4 {
            for (word, key) in key.iter_mut().enumerate() {
                // Past the last token nothing is transmitted, and nobody reads the scores.
                let mask = *block.masks.get((first + i) * W + word).unwrap_or(&0);
                let mask8 = mask8x64::from_bitmask(simd, mask);
                *key = values.load::<_, i8x64<_>>(simd, start).expand_merge(mask8, *key);
                start += mask.count_ones() as usize;
                let (low, high) = key.widen();
                for (sums, factors) in sums.iter_mut().zip(&factors) {
                    let sum = dot(simd, sums[i], low.into(), factors[word][0].into());
                    sums[i] = dot(simd, sum, high.into(), factors[word][1].into());
                }
            }
        }
        for ((sums, scale), out) in sums.iter().zip(scales).zip(out.chunks_mut(BLOCK)) {
            let scores = scaled_sums(simd, sums[0], sums[1], sums[2], sums[3], scale);
            match first.checked_sub(skip) {
                Some(token) => scores.store_slice(&mut out[token..][..4]),
                None => {
                    for (i, score) in scores.as_slice().iter().enumerate() {
                        if let Some(token) = (first + i).checked_sub(skip) {
                            out[token] = *score;
                        }
                    }
                }
            }
        }
    }
}

/// Rounds a query to 16 bits and returns its scale.
#[inline(always)]
fn to_codes(simd: Avx512, query: &[f32], codes: &mut [i16]) -> f32 {
    /// 1.5 * 2^23: added to a number below 2^22 in magnitude it leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let mut largest = f32x16::splat(simd, 0.0);
    for x in query.chunks_exact(16) {
        largest = largest.max(f32x16::from_slice(simd, x).abs());
    }
    let largest = largest.reduce_max();
    // A query next to zero gets codes of zero: its scores are below 1e-30.
    let inverse = if largest > 1e-33 { 32767.0 / largest } else { 0.0 };
    // As many as the query has, which the compiler does not know: it would unroll the loop over all there is room for, and take
    // minutes over the result.
    for (code, x) in codes[..query.len()].iter_mut().zip(query) {
        *code = (x * inverse + ROUND).to_bits() as i16;
    }
    // An infinite one makes NaN of every score.
    if inverse > 0.0 || largest <= 1e-33 { largest / 32767.0 } else { f32::NAN }
}

#[inline(always)]
fn zero(simd: Avx512) -> __m512i {
    i16x32::splat(simd, 0).into()
}

kernel!(
    /// `sum + a . b` by pairs of 16-bit numbers.
    #[inline(always)]
    fn dot(avx512: Avx512, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        _mm512_dpwssd_epi32(sum, a, b)
    }
);

kernel!(
    /// The sums over the lanes of four vectors, times `scale`.
    #[inline(always)]
    fn scaled_sums(
        avx512: Avx512,
        a: __m512i,
        b: __m512i,
        c: __m512i,
        d: __m512i,
        scale: f32,
    ) -> f32x4<Avx512> {
        let pairs = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (ab, cd) = (pairs(a, b), pairs(c, d));
        let quads = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        let upper = _mm512_extracti64x4_epi64::<1>(quads);
        let halves = _mm256_add_epi32(_mm512_castsi512_si256(quads), upper);
        let upper = _mm256_extracti128_si256::<1>(halves);
        let sums = _mm_add_epi32(_mm256_castsi256_si128(halves), upper);
        _mm_mul_ps(_mm_cvtepi32_ps(sums), _mm_set1_ps(scale)).simd_into(avx512)
    }
);
