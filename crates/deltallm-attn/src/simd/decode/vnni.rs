//! Scores of keys in 8 bits with AVX-512: sixteen keys side by side in the lanes, multiplied by one query after the other.
//!
//! A key of 64 channels is one register of bytes, read as it is stored or brought up to date by one expand instruction. Sixteen of
//! them are transposed, four channels at a time, so that one dot instruction adds four channels of a query to the scores of sixteen keys:
//! no sums over the lanes, and the scores come out as the skip test wants them. That instruction multiplies unsigned by
//! signed bytes, so keys are stored with 128 added, which the start of the sums takes back, and queries come in two digits
//! ([`super::queries`]).

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use deltallm_core::GROUP;
use fearless_simd::{Avx512, f32x16, i8x64, kernel, mask8x64, prelude::*, u8x64};
use half::f16;

use super::{
    ahead::Steps,
    expand::{Masked, Packed, padded},
    lanes::{Lanes, ToScore},
    passes::{Pass, in_passes},
    queries::{Codes, WORD},
    rows::Int8Rows,
};
use crate::decode::BLOCK;

/// Keys that are scored at a time: the lanes of a register.
const KEYS: usize = 16;

/// Added to a code to make it unsigned, by changing its highest bit.
const OFFSET: u8 = 128;

/// Scores of the keys of a delta-coded block. False, and nothing done, for a width that has no kernel.
#[inline(always)]
pub(super) fn delta_scores(simd: Avx512, block: Masked<i8>, to: ToScore) -> bool {
    match block.frame.len().div_ceil(WORD) {
        1 => in_passes(simd, to.queries.scales.len(), &mut Deltas::<1> { block, to }),
        2 => in_passes(simd, to.queries.scales.len(), &mut Deltas::<2> { block, to }),
        // No model has such heads.
        _ => return false,
    }
    true
}

/// Scores of `count` rows. False, and nothing done, for a width that has no kernel.
#[inline(always)]
pub(super) fn row_scores(simd: Avx512, rows: Int8Rows, count: usize, to: ToScore) -> bool {
    const TWO: usize = 2 * WORD;
    match to.channels {
        WORD => in_passes(simd, to.queries.scales.len(), &mut Plain::<1> { rows, count, to }),
        TWO => in_passes(simd, to.queries.scales.len(), &mut Plain::<2> { rows, count, to }),
        _ => return false,
    }
    true
}

impl ToScore<'_> {
    /// The codes of the heads `head..head + G`, and their scales.
    #[inline(always)]
    fn queries<const W: usize, const G: usize>(&self, head: usize) -> ([[Codes; W]; G], [f32; G]) {
        let (mut codes, mut scales) = ([[Codes::ZERO; W]; G], [0.0; G]);
        for i in 0..G {
            codes[i].copy_from_slice(&self.queries.codes[(head + i) * W..][..W]);
            scales[i] = self.queries.scales[head + i];
        }
        (codes, scales)
    }

    /// What is to be asked for with every register of keys; once, and not for every pass.
    #[inline(always)]
    fn ahead(&mut self, count: usize) -> [Steps; 2] {
        let [a, b] = std::mem::take(&mut self.ahead);
        [a.steps(count.div_ceil(KEYS)), b.steps(count.div_ceil(KEYS))]
    }

    /// Stores the scores of the keys from `first` on.
    #[inline(always)]
    fn store(&mut self, head: usize, first: usize, scores: f32x16<Avx512>) {
        let out = &mut self.out[head * BLOCK..];
        match first.checked_sub(self.skip) {
            Some(at) if at + KEYS <= out.len() => scores.store_slice(&mut out[at..at + KEYS]),
            _ => {
                for (i, score) in scores.as_slice().iter().enumerate() {
                    if let Some(at) = (first + i).checked_sub(self.skip)
                        && let Some(out) = out.get_mut(at)
                    {
                        *out = *score;
                    }
                }
            }
        }
    }
}

/// Keys of `W` registers, delta-coded.
struct Deltas<'a, const W: usize> {
    block: Masked<'a, i8>,
    to: ToScore<'a>,
}

impl<const W: usize> Pass<Avx512> for Deltas<'_, W> {
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: Avx512, head: usize) {
        let block = self.block;
        let (codes, scales) = self.to.queries::<W, G>(head);
        let offset = u8x64::splat(simd, OFFSET);
        let mut key = [offset; W];
        for (word, key) in key.iter_mut().enumerate() {
            *key = padded::<_, i8x64<_>>(simd, &block.frame[word * WORD..]).bitcast::<u8x64<_>>() ^ offset;
        }
        let values = Packed::new(block.values);
        let (tokens, mut start) = (block.tokens(), 0);
        let mut ahead = self.to.ahead(tokens);
        for first in (0..tokens).step_by(KEYS) {
            ahead.iter_mut().for_each(|ahead| ahead.prefetch(simd));
            // Past the last token nothing is transmitted, and nobody reads the scores.
            let mut masks = [[0; W]; KEYS];
            let held = block.masks[first * W..].iter();
            masks.as_flattened_mut().iter_mut().zip(held).for_each(|(mask, held)| *mask = *held);
            let mut sums = [[zero(simd); 2]; G];
            let mut end = start;
            for word in 0..W {
                end = start;
                let mut rows = [zero(simd); KEYS];
                for (row, masks) in rows.iter_mut().zip(&masks) {
                    for (other, mask) in masks.iter().enumerate() {
                        if other == word {
                            let new = values.load::<_, i8x64<_>>(simd, end).bitcast::<u8x64<_>>() ^ offset;
                            key[word] = new.expand_merge(mask8x64::from_bitmask(simd, *mask), key[word]);
                        }
                        end += mask.count_ones() as usize;
                    }
                    *row = key[word].into();
                }
                let fours = transpose_fours(simd, rows);
                for half in 0..2 {
                    multiply(simd, &fours, half, word, &codes, &mut sums);
                }
            }
            start = end;
            for i in 0..G {
                let mut bias = 0;
                for codes in &codes[i] {
                    bias += codes.sums[0] + codes.sums[1];
                }
                let scores = to_f32(simd, sums[i][0], sums[i][1], i32::from(OFFSET) * -bias) * scales[i];
                self.to.store(head + i, first, scores);
            }
        }
    }
}

/// Keys of `W` registers with a scale to [`GROUP`] channels.
struct Plain<'a, const W: usize> {
    rows: Int8Rows<'a>,
    count: usize,
    to: ToScore<'a>,
}

impl<const W: usize> Pass<Avx512> for Plain<'_, W> {
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: Avx512, head: usize) {
        let (codes, scales) = self.to.queries::<W, G>(head);
        let offset = u8x64::splat(simd, OFFSET);
        let mut ahead = self.to.ahead(self.count);
        for first in (0..self.count).step_by(KEYS) {
            ahead.iter_mut().for_each(|ahead| ahead.prefetch(simd));
            let last = self.count - 1;
            let row_scales = self.scales(simd, first);
            let mut scores = [f32x16::splat(simd, 0.0); G];
            for word in 0..W {
                let mut rows = [zero(simd); KEYS];
                for (i, row) in rows.iter_mut().enumerate() {
                    // The last row stands in for those that would follow it.
                    let at = ((first + i).min(last) * W + word) * WORD;
                    let codes = i8x64::from_slice(simd, &self.rows.codes[at..at + WORD]);
                    *row = (codes.bitcast::<u8x64<_>>() ^ offset).into();
                }
                let fours = transpose_fours(simd, rows);
                for half in 0..2 {
                    let mut sums = [[zero(simd); 2]; G];
                    multiply(simd, &fours, half, word, &codes, &mut sums);
                    for i in 0..G {
                        let bias = -i32::from(OFFSET) * codes[i][word].sums[half];
                        let sum = to_f32(simd, sums[i][0], sums[i][1], bias);
                        scores[i] = sum.mul_add(row_scales[word][half], scores[i]);
                    }
                }
            }
            for i in 0..G {
                self.to.store(head + i, first, scores[i] * scales[i]);
            }
        }
    }
}

impl<const W: usize> Plain<'_, W> {
    /// The scales of the keys from `first` on, by groups of channels: two of them to a register of codes.
    #[inline(always)]
    fn scales(&self, simd: Avx512, first: usize) -> [[f32x16<Avx512>; 2]; W] {
        const { assert!(2 * GROUP == WORD) };
        let mut stored = [[[f16::ZERO; KEYS]; 2]; W];
        let held = &self.rows.scales[first * 2 * W..];
        let room = stored.as_flattened_mut().as_flattened_mut();
        match held.get(..room.len()) {
            Some(held) => room.copy_from_slice(held),
            None => room[..held.len()].copy_from_slice(held),
        }
        let mut scales = [[f32x16::splat(simd, 0.0); 2]; W];
        for (scales, stored) in scales.as_flattened_mut().iter_mut().zip(stored.as_flattened()) {
            *scales = simd.f16s(stored);
        }
        // Every turn halves the distance between the scales of one group: `W` turns for 2 W groups.
        for _ in 0..W {
            let all = scales;
            for i in 0..W {
                let (a, b) = (all.as_flattened()[2 * i], all.as_flattened()[2 * i + 1]);
                scales.as_flattened_mut()[i] = a.unzip_low(b);
                scales.as_flattened_mut()[W + i] = a.unzip_high(b);
            }
        }
        scales
    }
}

/// Adds the products of 32 channels: four times two registers of four channels each, of every key.
#[inline(always)]
fn multiply<const W: usize, const G: usize>(
    simd: Avx512,
    fours: &[[__m512i; 4]; 4],
    half: usize,
    word: usize,
    codes: &[[Codes; W]; G],
    sums: &mut [[__m512i; 2]; G],
) {
    for i in 0..4 {
        let [a, b, c, d] = [fours[0][i], fours[1][i], fours[2][i], fours[3][i]];
        // Quarter `q` of a register has the channels `16 q + 4 i ..` of four keys.
        let (ab, cd) = match half {
            0 => (low_quarters(simd, a, b), low_quarters(simd, c, d)),
            _ => (high_quarters(simd, a, b), high_quarters(simd, c, d)),
        };
        for (odd, keys) in [even_quarters(simd, ab, cd), odd_quarters(simd, ab, cd)].into_iter().enumerate() {
            let four = 8 * half + 4 * odd + i;
            for (sums, codes) in sums.iter_mut().zip(codes) {
                sums[0] = dot(simd, sums[0], keys, codes[word].high[four]);
                sums[1] = dot(simd, sums[1], keys, codes[word].low[four]);
            }
        }
    }
}

/// Transposes 32-bit numbers within blocks of 4 x 4: `[keys / 4][i]` has in its quarter `q` the number `4 q + i` of four keys.
#[inline(always)]
fn transpose_fours(simd: Avx512, rows: [__m512i; KEYS]) -> [[__m512i; 4]; 4] {
    let mut fours = [[zero(simd); 4]; 4];
    for (four, rows) in fours.iter_mut().zip(rows.as_chunks().0) {
        let [a, b, c, d] = *rows;
        let (ab, cd) = (unpack_low32(simd, a, b), unpack_low32(simd, c, d));
        four[0] = unpack_low64(simd, ab, cd);
        four[1] = unpack_high64(simd, ab, cd);
        let (ab, cd) = (unpack_high32(simd, a, b), unpack_high32(simd, c, d));
        four[2] = unpack_low64(simd, ab, cd);
        four[3] = unpack_high64(simd, ab, cd);
    }
    fours
}

#[inline(always)]
fn zero(simd: Avx512) -> __m512i {
    u8x64::splat(simd, 0).into()
}

/// Defines functions of two registers by one instruction each.
macro_rules! instructions {
    ($($name:ident = $instruction:ident $(::<$imm:literal>)?;)*) => {
        $(kernel!(
            #[inline(always)]
            fn $name(avx512: Avx512, a: __m512i, b: __m512i) -> __m512i {
                $instruction$(::<$imm>)?(a, b)
            }
        );)*
    };
}

instructions! {
    unpack_low32 = _mm512_unpacklo_epi32;
    unpack_high32 = _mm512_unpackhi_epi32;
    unpack_low64 = _mm512_unpacklo_epi64;
    unpack_high64 = _mm512_unpackhi_epi64;
    low_quarters = _mm512_shuffle_i32x4::<0x44>;
    high_quarters = _mm512_shuffle_i32x4::<0xee>;
    even_quarters = _mm512_shuffle_i32x4::<0x88>;
    odd_quarters = _mm512_shuffle_i32x4::<0xdd>;
}

kernel!(
    /// Adds to every lane the products of its four unsigned bytes with those of `query`.
    #[inline(always)]
    fn dot(avx512: Avx512, sum: __m512i, keys: __m512i, query: i32) -> __m512i {
        _mm512_dpbusd_epi32(sum, keys, _mm512_set1_epi32(query))
    }
);

kernel!(
    /// `256 * high + low + bias`.
    #[inline(always)]
    fn to_f32(avx512: Avx512, high: __m512i, low: __m512i, bias: i32) -> f32x16<Avx512> {
        let low = _mm512_add_epi32(low, _mm512_set1_epi32(bias));
        let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
        _mm512_cvtepi32_ps(sum).simd_into(avx512)
    }
);
