//! Rows of keys by expand instructions: the key stays in a register, and one instruction brings the new values to their places.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::fearless_simd::{Avx512, f32x16, i8x64, kernel, prelude::*, u16x32};

use crate::decode::expand::{Coded, Masked, low_bits, padded, row_stride};

/// A number that is expanded by an instruction of its own.
pub(crate) trait Expand: Coded {
    type Vector: SimdBase<Avx512, Element = Self>;

    /// The first of `values`, one to each of the lowest bits of `mask` that is set, and zeros. There is a value for every bit
    /// of a block: a delta matrix writes them together and cuts them together.
    fn expand(simd: Avx512, mask: u64, values: &[Self]) -> Self::Vector;
}

/// Writes each token's key to `out`, `[tokens, row_stride(channels)]`.
#[inline(always)]
pub(crate) fn expand<T: Expand>(simd: Avx512, block: Masked<T>, out: &mut [T]) {
    let lanes = T::Vector::LEN;
    let (words, stride) = (block.frame.len().div_ceil(64), row_stride(block.frame.len()));
    // Where the values of each token begin that are still to come.
    let mut starts = [0; BLOCK_TOKENS];
    let mut start = 0;
    for (first, masks) in starts.iter_mut().zip(block.masks.chunks_exact(words)) {
        *first = start;
        // A loop: the sum of an iterator may not be inlined, and counts without the instruction then.
        for mask in masks {
            start += mask.count_ones() as usize;
        }
    }
    for first in (0..stride).step_by(lanes) {
        let mut key = padded::<_, T::Vector>(simd, block.frame.get(first..).unwrap_or(&[]));
        let rows = block.masks.chunks_exact(words).zip(out.chunks_exact_mut(stride));
        for ((masks, row), start) in rows.zip(&mut starts) {
            let mask = masks[first / 64] >> (first % 64) & low_bits(lanes);
            let new = T::expand(simd, mask, &block.values[*start..]);
            // Not an expansion into the key before, which would have to wait much longer for it.
            key = T::next(simd, <T::Vector as SimdBase<_>>::Mask::from_bitmask(simd, mask), new, key);
            *start += mask.count_ones() as usize;
            key.store_slice(&mut row[first..][..lanes]);
        }
    }
}

impl Expand for i8 {
    type Vector = i8x64<Avx512>;

    #[inline(always)]
    fn expand(simd: Avx512, mask: u64, values: &[Self]) -> Self::Vector {
        kernel!(
            #[inline(always)]
            fn load(avx512: Avx512, mask: u64, values: &[i8]) -> i8x64<Avx512> {
                assert!(mask.count_ones() as usize <= values.len());
                // SAFETY: the instruction reads as many numbers as the mask has bits, and there are as many.
                unsafe { _mm512_maskz_expandloadu_epi8(mask, values.as_ptr()) }.simd_into(avx512)
            }
        );
        load(simd, mask, values)
    }
}

impl Expand for u16 {
    type Vector = u16x32<Avx512>;

    #[inline(always)]
    fn expand(simd: Avx512, mask: u64, values: &[Self]) -> Self::Vector {
        kernel!(
            #[inline(always)]
            fn load(avx512: Avx512, mask: u32, values: &[u16]) -> u16x32<Avx512> {
                assert!(mask.count_ones() as usize <= values.len());
                // SAFETY: the instruction reads as many numbers as the mask has bits, and there are as many.
                unsafe { _mm512_maskz_expandloadu_epi16(mask, values.as_ptr().cast()) }.simd_into(avx512)
            }
        );
        load(simd, mask as u32, values)
    }
}

impl Expand for f32 {
    type Vector = f32x16<Avx512>;

    #[inline(always)]
    fn expand(simd: Avx512, mask: u64, values: &[Self]) -> Self::Vector {
        kernel!(
            #[inline(always)]
            fn load(avx512: Avx512, mask: u16, values: &[f32]) -> f32x16<Avx512> {
                assert!(mask.count_ones() as usize <= values.len());
                // SAFETY: the instruction reads as many numbers as the mask has bits, and there are as many.
                unsafe { _mm512_maskz_expandloadu_ps(mask, values.as_ptr()) }.simd_into(avx512)
            }
        );
        load(simd, mask as u16, values)
    }
}
