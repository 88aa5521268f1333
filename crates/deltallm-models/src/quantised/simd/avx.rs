//! 256-bit vectors: half a line is a vector.
//!
//! With AVX-VNNI there are dot products of bytes (`vpdpbusd`). AVX2 alone multiplies bytes to sums of two products in 16 bits
//! (`vpmaddubsw`): a code of half a byte is at most 15 and an activation at most 127, so 8 sums of two products, 30480, fit.
//! Wider codes less 128 are signed: their signs move over to the activations, a sum of two products is at most 32512, and it
//! is widened at once.
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
    #[target_feature(enable = "avx2")]
    fn compiled<const BLOCK: usize>(
        offset: i32,
        x: &[f32],
        blocks: usize,
        codes: &mut [Quad],
        scales: &mut [BlockScale],
    ) {
        activations::quantise_batch::<BLOCK>(offset, x, blocks, codes, scales);
    }
    // SAFETY: `Instructions::Avx2` and `AvxVnni` are made only where the instructions were detected.
    unsafe { compiled::<BLOCK>(offset, x, blocks, codes, scales) }
}

pub(super) fn multiply_avx2(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn compiled(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
        // SAFETY: this function has the instructions, and its caller has checked the sizes.
        unsafe { tile::multiply::<Avx<false>, 1, 4>(form, std::array::from_ref(panel), batch, sums) }
    }
    // SAFETY: `Instructions::Avx2` is made only where the instructions were detected.
    unsafe { compiled(form, panel, batch, sums) }
}

pub(super) fn multiply_vnni(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn compiled(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
        // SAFETY: this function has the instructions, and its caller has checked the sizes.
        unsafe { tile::multiply::<Avx<true>, 1, 6>(form, std::array::from_ref(panel), batch, sums) }
    }
    // SAFETY: `Instructions::AvxVnni` is made only where the instructions were detected.
    unsafe { compiled(form, panel, batch, sums) }
}

/// AVX2, with AVX-VNNI or without.
struct Avx<const VNNI: bool>;

// SAFETY of all blocks: as the caller promises; half a line and 8 numbers are as long as the vectors that are read and written.
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl<const VNNI: bool> Level for Avx<VNNI> {
    const SIGNED: bool = !VNNI;

    /// Codes; of wide ones without VNNI the magnitude of what they are less 128. Beside it what has the sign.
    type Codes = [[__m256i; 2]; 2];
    /// In 16 bits for codes of half a byte without VNNI, in 32 for all others.
    type Sums = [__m256i; 2];
    type Floats = [__m256; 2];

    #[inline(always)]
    unsafe fn low(line: &Line) -> Self::Codes {
        unsafe {
            let ([low, high], mask) = (load(line), _mm256_set1_epi8(0xf));
            [[_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)]; 2]
        }
    }

    #[inline(always)]
    unsafe fn high(line: &Line) -> Self::Codes {
        unsafe {
            let ([low, high], mask) = (load(line), _mm256_set1_epi8(0xf));
            let (low, high) = (_mm256_srli_epi16::<4>(low), _mm256_srli_epi16::<4>(high));
            [[_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)]; 2]
        }
    }

    #[inline(always)]
    unsafe fn wide(line: &Line) -> Self::Codes {
        unsafe {
            let codes @ [low, high] = load(line);
            if VNNI {
                return [codes; 2];
            }
            let flip = _mm256_set1_epi8(-128);
            let (low, high) = (_mm256_xor_si256(low, flip), _mm256_xor_si256(high, flip));
            [[_mm256_abs_epi8(low), _mm256_abs_epi8(high)], [low, high]]
        }
    }

    #[inline(always)]
    unsafe fn begin(start: i32) -> Self::Sums {
        unsafe { [_mm256_set1_epi32(if VNNI { start } else { 0 }); 2] }
    }

    #[inline(always)]
    unsafe fn add<const WIDE: bool>(sums: Self::Sums, codes: Self::Codes, quad: Quad) -> Self::Sums {
        unsafe {
            let ([codes, signs], quad) = (codes, _mm256_set1_epi32(bits(quad)));
            if VNNI {
                let low = _mm256_dpbusd_avx_epi32(sums[0], codes[0], quad);
                return [low, _mm256_dpbusd_avx_epi32(sums[1], codes[1], quad)];
            }
            if WIDE {
                let ones = _mm256_set1_epi16(1);
                let low = _mm256_maddubs_epi16(codes[0], _mm256_sign_epi8(quad, signs[0]));
                let high = _mm256_maddubs_epi16(codes[1], _mm256_sign_epi8(quad, signs[1]));
                let (low, high) = (_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
                return [_mm256_add_epi32(sums[0], low), _mm256_add_epi32(sums[1], high)];
            }
            let low = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(codes[0], quad));
            [low, _mm256_add_epi16(sums[1], _mm256_maddubs_epi16(codes[1], quad))]
        }
    }

    #[inline(always)]
    unsafe fn total<const WIDE: bool>(sums: Self::Sums, start: i32) -> Self::Floats {
        unsafe {
            let [mut low, mut high] = sums;
            if !VNNI {
                if !WIDE {
                    let ones = _mm256_set1_epi16(1);
                    (low, high) = (_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones));
                }
                let start = _mm256_set1_epi32(start);
                (low, high) = (_mm256_add_epi32(low, start), _mm256_add_epi32(high, start));
            }
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    unsafe fn widen(halves: &Halves) -> Self::Floats {
        unsafe {
            let start = halves.0.as_ptr().cast::<__m128i>();
            [_mm256_cvtph_ps(_mm_load_si128(start)), _mm256_cvtph_ps(_mm_load_si128(start.add(1)))]
        }
    }

    #[inline(always)]
    unsafe fn load(row: &[f32; PANEL]) -> Self::Floats {
        unsafe { [_mm256_loadu_ps(row.as_ptr()), _mm256_loadu_ps(row.as_ptr().add(8))] }
    }

    #[inline(always)]
    unsafe fn store(floats: Self::Floats, row: &mut [f32; PANEL]) {
        unsafe {
            _mm256_storeu_ps(row.as_mut_ptr(), floats[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(8), floats[1]);
        }
    }

    #[inline(always)]
    unsafe fn scale(a: Self::Floats, b: f32) -> Self::Floats {
        unsafe { [_mm256_mul_ps(a[0], _mm256_set1_ps(b)), _mm256_mul_ps(a[1], _mm256_set1_ps(b))] }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn multiply_add_one(a: Self::Floats, b: f32, c: Self::Floats) -> Self::Floats {
        unsafe { Self::multiply_add(a, [_mm256_set1_ps(b); 2], c) }
    }
}

/// The two halves of a line: rows 0 to 7 and 8 to 15.
///
/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn load(line: &Line) -> [__m256i; 2] {
    let start = line.0.as_ptr().cast();
    // SAFETY: a line is 64 bytes that start at a multiple of 64; the rest as the caller promises.
    unsafe { [_mm256_load_si256(start), _mm256_load_si256(start.add(1))] }
}
