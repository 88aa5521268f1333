//! Products of bytes on x86-64.
#![allow(unsafe_code, reason = "calls that a token proves")]

use std::arch::x86_64::*;

use fearless_simd::{Avx2, Avx512, i8x32, i8x64, i32x8, i32x16, kernel, prelude::*, u8x32, u8x64};

use crate::features::AvxVnni;

impl AvxVnni {
    /// Adds to every lane the products of its four unsigned bytes with its four signed ones.
    #[inline(always)]
    pub fn dot(self, sums: i32x8<Avx2>, unsigned: u8x32<Avx2>, signed: i8x32<Avx2>) -> i32x8<Avx2> {
        #[inline]
        #[target_feature(enable = "avx2,avxvnni")]
        fn compiled(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
            _mm256_dpbusd_avx_epi32(sums, unsigned, signed)
        }
        // SAFETY: the token proves that the CPU has the instructions.
        unsafe { compiled(sums.into(), unsigned.into(), signed.into()) }.simd_into(self.avx2())
    }
}

kernel!(
    /// Adds to every lane the products of its four unsigned bytes with its four signed ones.
    #[inline(always)]
    pub fn dot_avx512(
        avx512: Avx512,
        sums: i32x16<Avx512>,
        unsigned: u8x64<Avx512>,
        signed: i8x64<Avx512>,
    ) -> i32x16<Avx512> {
        _mm512_dpbusd_epi32(sums.into(), unsigned.into(), signed.into()).simd_into(avx512)
    }
);
