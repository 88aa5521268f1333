//! AVX2 and AVX-512.

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use deltallm_core::{BLOCK_TOKENS, internal::Int8Rows};
use deltallm_simd::fearless_simd::{
    Avx2, Avx512, f32x4, f32x8, f32x16, kernel, mask8x64, prelude::*, u8x16, u8x64,
};

use super::{expand_avx512::expand, madd, vnni};
use crate::decode::{
    decode_simd::{DecodeSimd, ToScore},
    expand::Masked,
};

// Sixteen registers: eleven or twelve for sums, the rest for rows, queries and weights.
impl DecodeSimd for Avx2 {
    const HEADS: usize = 3;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn nibbles(self, x: &[u8], high: bool) -> f32x8<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx2: Avx2, x: i64, high: bool) -> f32x8<Avx2> {
                let wide = _mm256_cvtepu8_epi32(_mm_set1_epi64x(x));
                let half = if high { _mm256_srli_epi32::<4>(wide) } else { wide };
                _mm256_cvtepi32_ps(_mm256_and_si256(half, _mm256_set1_epi32(15))).simd_into(avx2)
            }
        );
        let mut bytes = [0; 8];
        bytes.copy_from_slice(x);
        convert(self, i64::from_le_bytes(bytes), high) - 8.0
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [f32x8<Self>; 4]) -> [f32; 4] {
        kernel!(
            #[inline(always)]
            fn sum(avx2: Avx2, a: __m256, b: __m256, c: __m256, d: __m256) -> f32x4<Avx2> {
                let pairs = |a, b| _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
                let (ab, cd) = (_mm256_castps_pd(pairs(a, b)), _mm256_castps_pd(pairs(c, d)));
                let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
                let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
                let quads = _mm256_add_ps(low, high);
                let sums = _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps::<1>(quads));
                sums.simd_into(avx2)
            }
        );
        sum(self, a.into(), b.into(), c.into(), d.into()).into()
    }

    #[inline(always)]
    fn delta_scores(self, block: Masked<i8>, to: ToScore, keys: &mut Vec<i8>) -> bool {
        madd::delta_scores(self, block, to, keys);
        true
    }

    #[inline(always)]
    fn int8_scores(self, rows: Int8Rows, count: usize, to: ToScore) -> bool {
        madd::row_scores(self, rows, count, to)
    }

    #[inline(always)]
    fn expand_i8(self, block: Masked<i8>, out: &mut [i8]) {
        madd::expand(self, block, out);
    }
}

impl DecodeSimd for Avx512 {
    const HEADS: usize = 4;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn nibbles(self, x: &[u8], high: bool) -> f32x16<Self> {
        kernel!(
            #[inline(always)]
            fn choose(avx512: Avx512, x: u8x16<Avx512>, high: bool, all: __m512) -> f32x16<Avx512> {
                let wide = _mm512_cvtepu8_epi32(x.into());
                let half = if high { _mm512_srli_epi32::<4>(wide) } else { wide };
                // Looks at four bits only.
                _mm512_permutexvar_ps(half, all).simd_into(avx512)
            }
        );
        let all = f32x16::from_fn(self, |i| i as f32 - 8.0);
        choose(self, u8x16::from_slice(self, x), high, all.into())
    }

    #[inline(always)]
    fn sums(self, [a, b, c, d]: [f32x16<Self>; 4]) -> [f32; 4] {
        kernel!(
            #[inline(always)]
            fn sum(avx512: Avx512, a: __m512, b: __m512, c: __m512, d: __m512) -> f32x4<Avx512> {
                let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
                let (ab, cd) = (_mm512_castps_pd(pairs(a, b)), _mm512_castps_pd(pairs(c, d)));
                let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
                let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
                let quads = _mm512_add_ps(low, high);
                let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quads)));
                let halves = _mm256_add_ps(_mm512_castps512_ps256(quads), upper);
                let upper = _mm256_extractf128_ps::<1>(halves);
                _mm_add_ps(_mm256_castps256_ps128(halves), upper).simd_into(avx512)
            }
        );
        sum(self, a.into(), b.into(), c.into(), d.into()).into()
    }

    #[inline(always)]
    fn delta_scores(self, block: Masked<i8>, to: ToScore, _: &mut Vec<i8>) -> bool {
        vnni::delta_scores(self, block, to)
    }

    #[inline(always)]
    fn int8_scores(self, rows: Int8Rows, count: usize, to: ToScore) -> bool {
        vnni::row_scores(self, rows, count, to)
    }

    #[inline(always)]
    fn numbers(self, bits: u64, numbers: &mut [u8; BLOCK_TOKENS]) {
        let all = u8x64::from_fn(self, |i| i as u8);
        all.compress(mask8x64::from_bitmask(self, bits)).store_slice(numbers);
    }

    #[inline(always)]
    fn expand_i8(self, block: Masked<i8>, out: &mut [i8]) {
        expand(self, block, out);
    }

    #[inline(always)]
    fn expand_u16(self, block: Masked<u16>, out: &mut [u16]) {
        expand(self, block, out);
    }

    #[inline(always)]
    fn expand_f32(self, block: Masked<f32>, out: &mut [f32]) {
        expand(self, block, out);
    }
}
