//! 512-bit dot products of bytes (AVX512-VNNI): a line is a vector, and so are 16 rows' sums.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]

use std::arch::x86_64::*;

use super::tile::{self, Level};
use crate::kernels::{Halves, Line, PANEL, Quad, bits};
use crate::quantised::{
    activations::{self, Batch, BlockScale},
    layout::{Form, Panel},
};

pub(super) fn quantise_batch<const BLOCK: usize>(
    offset: i32,
    x: &[f32],
    blocks: usize,
    codes: &mut [Quad],
    scales: &mut [BlockScale],
) {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn compiled<const BLOCK: usize>(
        offset: i32,
        x: &[f32],
        blocks: usize,
        codes: &mut [Quad],
        scales: &mut [BlockScale],
    ) {
        activations::quantise_batch::<BLOCK>(offset, x, blocks, codes, scales);
    }
    // SAFETY: `Instructions::Avx512Vnni` is made only where the instructions were detected.
    unsafe { compiled::<BLOCK>(offset, x, blocks, codes, scales) }
}

pub(super) fn multiply<const P: usize>(
    form: Form,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[f32; PANEL]],
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn compiled<const P: usize>(
        form: Form,
        panels: &[Panel<'_>; P],
        batch: Batch<'_>,
        sums: &mut [[f32; PANEL]],
    ) {
        // SAFETY: this function has the instructions, and its caller has checked the sizes. Two panels' codes of a block are
        // 16 registers, four tokens' sums 8.
        unsafe { tile::multiply::<Avx512, P, 4>(form, panels, batch, sums) }
    }
    // SAFETY: `Instructions::Avx512Vnni` is made only where the instructions were detected.
    unsafe { compiled(form, panels, batch, sums) }
}

struct Avx512;

// SAFETY of all blocks: as the caller promises; a line and 16 numbers are as long as the vectors that are read and written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl Level for Avx512 {
    const SIGNED: bool = false;

    type Codes = __m512i;
    type Sums = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn low(line: &Line) -> __m512i {
        unsafe { _mm512_and_si512(Self::wide(line), _mm512_set1_epi8(0xf)) }
    }

    #[inline(always)]
    unsafe fn high(line: &Line) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(Self::wide(line)), _mm512_set1_epi8(0xf)) }
    }

    #[inline(always)]
    unsafe fn wide(line: &Line) -> __m512i {
        unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
    }

    #[inline(always)]
    unsafe fn begin(start: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn add<const WIDE: bool>(sums: __m512i, codes: __m512i, quad: Quad) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(bits(quad))) }
    }

    #[inline(always)]
    unsafe fn total<const WIDE: bool>(sums: __m512i, _: i32) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn widen(halves: &Halves) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_load_si256(halves.0.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn load(row: &[f32; PANEL]) -> __m512 {
        unsafe { _mm512_loadu_ps(row.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn store(floats: __m512, row: &mut [f32; PANEL]) {
        unsafe { _mm512_storeu_ps(row.as_mut_ptr(), floats) };
    }

    #[inline(always)]
    unsafe fn scale(a: __m512, b: f32) -> __m512 {
        unsafe { _mm512_mul_ps(a, _mm512_set1_ps(b)) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn multiply_add_one(a: __m512, b: f32, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, _mm512_set1_ps(b), c) }
    }
}
