//! Scores of keys in 8 bits with AVX-512: sixteen keys side by side in the lanes, multiplied by one query after the other.
//!
//! A key of 64 channels is one register of bytes, read as it is stored or brought up to date by one expand instruction. Sixteen of
//! them are transposed, four channels at a time, so that one dot instruction adds four channels of a query to the scores of sixteen keys:
//! no sums over the lanes, and the scores come out as the skip test wants them. That instruction multiplies unsigned by
//! signed bytes, so keys are stored with 128 added, which the start of the sums takes back, and queries come in two digits
//! ([`queries`](crate::decode::queries)).
#![allow(unsafe_code)]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use deltallm_core::{
    BLOCK_TOKENS,
    internal::{GROUP, Int8Rows},
};
use deltallm_simd::{
    convert::Convert,
    fearless_simd::{Avx512, f32x16, i8x64, kernel, prelude::*, u8x64},
};
use half::f16;

use crate::decode::{
    ahead::Steps,
    decode_simd::ToScore,
    expand::{Masked, padded},
    passes::{Pass, in_passes},
    queries::{CodedWord, WORD},
};

/// Keys that are scored at a time: the lanes of a register.
const KEYS: usize = 16;

/// Added to a code to make it unsigned, by changing its highest bit.
const OFFSET: u8 = 128;

/// Scores of the keys of a delta-coded block. False, and nothing done, for a width that has no kernel.
#[inline(always)]
pub(crate) fn delta_scores(simd: Avx512, block: Masked<i8>, to: ToScore) -> bool {
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
pub(crate) fn row_scores(simd: Avx512, rows: Int8Rows, count: usize, to: ToScore) -> bool {
    const TWO: usize = 2 * WORD;
    match to.channels {
        WORD => in_passes(simd, to.queries.scales.len(), &mut Plain::<1> { rows, count, to }),
        TWO => in_passes(simd, to.queries.scales.len(), &mut Plain::<2> { rows, count, to }),
        _ => return false,
    }
    true
}

impl<'a> ToScore<'a> {
    /// The codes of the heads `head..head + G`, and their scales; `None` if there are fewer.
    #[inline(always)]
    fn queries<const W: usize, const G: usize>(
        &self,
        head: usize,
    ) -> Option<(&'a [[CodedWord; W]; G], &'a [f32; G])> {
        let codes = self.queries.codes.as_chunks().0.get(head..)?.first_chunk()?;
        Some((codes, self.queries.scales.get(head..)?.first_chunk()?))
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
        let out = &mut self.out[head * BLOCK_TOKENS..];
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
        let Some((codes, scales)) = self.to.queries::<W, G>(head) else { return };
        let mut keys = Running::<W>::new(simd, self.block);
        let tokens = keys.masks.len();
        let mut ahead = self.to.ahead(tokens);
        for first in (0..tokens).step_by(KEYS) {
            ahead.iter_mut().for_each(|ahead| ahead.prefetch());
            let Some(masks) = keys.next_masks(first) else { return };
            let mut sums = [[zero(simd); 2]; G];
            for word in 0..W {
                let fours = keys.fours(simd, &masks, word);
                sums = multiply::<W, G, 0>(simd, &fours, word, codes, sums);
                sums = multiply::<W, G, 1>(simd, &fours, word, codes, sums);
            }
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

/// Delta-coded keys of `W` registers, brought up to date token by token.
struct Running<'a, const W: usize> {
    masks: &'a [[u64; W]],
    differences: &'a [i8],
    /// The first difference of the sixteen keys that are next, and of those after them.
    start: usize,
    end: usize,
    /// The last key, 128 added to every code.
    key: [u8x64<Avx512>; W],
}

impl<'a, const W: usize> Running<'a, W> {
    #[inline(always)]
    fn new(simd: Avx512, block: Masked<'a, i8>) -> Self {
        let mut key = [u8x64::splat(simd, 0); W];
        for (key, frame) in key.iter_mut().zip(block.frame.chunks(WORD)) {
            *key = padded::<_, i8x64<_>>(simd, frame).bitcast::<u8x64<_>>() + OFFSET;
        }
        Self { masks: block.masks.as_chunks().0, differences: block.values, start: 0, end: 0, key }
    }

    /// The masks of sixteen keys from token `first` on, all of whose differences are there. Past the last token nothing is
    /// transmitted, and nobody reads the scores.
    #[inline(always)]
    fn next_masks(&mut self, first: usize) -> Option<[[u64; W]; KEYS]> {
        let held = &self.masks[first..];
        let masks = held.first_chunk().copied().unwrap_or_else(
            #[inline(always)]
            || {
                let mut masks = [[0; W]; KEYS];
                masks.iter_mut().zip(held).for_each(|(mask, held)| *mask = *held);
                masks
            },
        );
        self.start = self.end;
        // A loop: the sum of an iterator is not inlined, and counts without the instruction.
        for mask in masks.as_flattened() {
            self.end += mask.count_ones() as usize;
        }
        (self.end <= self.differences.len()).then_some(masks)
    }

    /// Register `word` of the sixteen keys with these masks, transposed.
    #[inline(always)]
    fn fours(&mut self, simd: Avx512, masks: &[[u64; W]; KEYS], word: usize) -> Fours {
        let mut at = self.start;
        // Written out: what does not become a loop stays in registers.
        let a = self.four(simd, masks, 0, word, &mut at);
        let b = self.four(simd, masks, 1, word, &mut at);
        let c = self.four(simd, masks, 2, word, &mut at);
        let d = self.four(simd, masks, 3, word, &mut at);
        [a, b, c, d]
    }

    #[inline(always)]
    fn four(
        &mut self,
        simd: Avx512,
        masks: &[[u64; W]; KEYS],
        four: usize,
        word: usize,
        at: &mut usize,
    ) -> [__m512i; 4] {
        let a = self.key(simd, &masks[4 * four], word, at);
        let b = self.key(simd, &masks[4 * four + 1], word, at);
        let c = self.key(simd, &masks[4 * four + 2], word, at);
        let d = self.key(simd, &masks[4 * four + 3], word, at);
        transpose_four(simd, [a, b, c, d])
    }

    /// Register `word` of the next key; `at` is the first difference of the key, and then of the one after it.
    #[inline(always)]
    fn key(&mut self, simd: Avx512, masks: &[u64; W], word: usize, at: &mut usize) -> __m512i {
        for (other, mask) in masks.iter().enumerate() {
            if other == word {
                self.key[word] += expand(simd, *mask, self.differences, *at);
            }
            *at += mask.count_ones() as usize;
        }
        self.key[word].into()
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
        let Some((codes, scales)) = self.to.queries::<W, G>(head) else { return };
        let mut ahead = self.to.ahead(self.count);
        for first in (0..self.count).step_by(KEYS) {
            ahead.iter_mut().for_each(|ahead| ahead.prefetch());
            let row_scales = self.scales(simd, first);
            let mut last_rows = [0; 2 * WORD * KEYS];
            let held = &self.rows.codes[first * W * WORD..];
            let rows = held.get(..KEYS * W * WORD).unwrap_or_else(
                #[inline(always)]
                || {
                    last_rows.iter_mut().zip(held).for_each(|(code, held)| *code = *held);
                    &last_rows
                },
            );
            let mut scores = [f32x16::splat(simd, 0.0); G];
            for word in 0..W {
                let a = Self::four(simd, rows, 0, word);
                let b = Self::four(simd, rows, 1, word);
                let c = Self::four(simd, rows, 2, word);
                let d = Self::four(simd, rows, 3, word);
                let fours = [a, b, c, d];
                let zeros = [[zero(simd); 2]; G];
                let halves = [
                    multiply::<W, G, 0>(simd, &fours, word, codes, zeros),
                    multiply::<W, G, 1>(simd, &fours, word, codes, zeros),
                ];
                for (half, sums) in halves.iter().enumerate() {
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
    /// Register `word` of four of the sixteen `rows`, transposed.
    #[inline(always)]
    fn four(simd: Avx512, rows: &[i8], four: usize, word: usize) -> [__m512i; 4] {
        let mut keys = [zero(simd); 4];
        for (i, key) in keys.iter_mut().enumerate() {
            let codes = i8x64::from_slice(simd, &rows[((4 * four + i) * W + word) * WORD..][..WORD]);
            *key = (codes.bitcast::<u8x64<_>>() ^ u8x64::splat(simd, OFFSET)).into();
        }
        transpose_four(simd, keys)
    }

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

/// One register of sixteen keys, transposed in blocks of 4 x 4 numbers of 32 bits: `[keys / 4][i]` has in its quarter `q` the
/// number `4 q + i` of four keys.
type Fours = [[__m512i; 4]; 4];

/// Adds the products of a half of the channels: four times two registers of four channels each, of every key.
#[inline(always)]
fn multiply<const W: usize, const G: usize, const HALF: usize>(
    simd: Avx512,
    fours: &Fours,
    word: usize,
    codes: &[[CodedWord; W]; G],
    mut sums: [[__m512i; 2]; G],
) -> [[__m512i; 2]; G] {
    // Written out, as loops around the loop over the heads would have the sums stored after every step.
    quarter::<W, G, HALF>(simd, fours, 0, word, codes, &mut sums);
    quarter::<W, G, HALF>(simd, fours, 1, word, codes, &mut sums);
    quarter::<W, G, HALF>(simd, fours, 2, word, codes, &mut sums);
    quarter::<W, G, HALF>(simd, fours, 3, word, codes, &mut sums);
    sums
}

/// The two registers of [`multiply`] made from `fours[..][i]`.
#[inline(always)]
fn quarter<const W: usize, const G: usize, const HALF: usize>(
    simd: Avx512,
    fours: &Fours,
    i: usize,
    word: usize,
    codes: &[[CodedWord; W]; G],
    sums: &mut [[__m512i; 2]; G],
) {
    let [a, b, c, d] = [fours[0][i], fours[1][i], fours[2][i], fours[3][i]];
    let (ab, cd) = match HALF {
        0 => (low_quarters(simd, a, b), low_quarters(simd, c, d)),
        _ => (high_quarters(simd, a, b), high_quarters(simd, c, d)),
    };
    let (even, odd) = (even_quarters(simd, ab, cd), odd_quarters(simd, ab, cd));
    let four = 8 * HALF + i;
    for (sums, codes) in sums.iter_mut().zip(codes) {
        let CodedWord { high, low, .. } = &codes[word];
        sums[0] = dot(simd, dot(simd, sums[0], even, high[four]), odd, high[four + 4]);
        sums[1] = dot(simd, dot(simd, sums[1], even, low[four]), odd, low[four + 4]);
    }
}

#[inline(always)]
fn transpose_four(simd: Avx512, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (unpack_low32(simd, a, b), unpack_low32(simd, c, d));
    let (ab_high, cd_high) = (unpack_high32(simd, a, b), unpack_high32(simd, c, d));
    [
        unpack_low64(simd, ab, cd),
        unpack_high64(simd, ab, cd),
        unpack_low64(simd, ab_high, cd_high),
        unpack_high64(simd, ab_high, cd_high),
    ]
}

/// The differences from `start` on, one to every bit that is set, and zeros.
#[inline(always)]
fn expand(simd: Avx512, mask: u64, differences: &[i8], start: usize) -> u8x64<Avx512> {
    kernel!(
        #[inline(always)]
        fn load(avx512: Avx512, mask: u64, differences: &[i8], start: usize) -> u8x64<Avx512> {
            debug_assert!(start + mask.count_ones() as usize <= differences.len());
            // SAFETY: the instruction reads as many bytes as the mask has bits, and does not touch what lies after them. Those
            // are in the slice: `Running::next_masks` has found all of the sixteen keys to be there.
            unsafe { _mm512_maskz_expandloadu_epi8(mask, differences.as_ptr().wrapping_add(start)) }
                .simd_into(avx512)
        }
    );
    load(simd, mask, differences, start)
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
