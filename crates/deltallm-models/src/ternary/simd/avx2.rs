//! AVX2, which multiplies bytes to sums of two products in 16 bits (`vpmaddubsw`): half a line is a vector.
//!
//! A code is at most 2 and an activation at least -128, so a sum of two products is at least -512, and 64 of them fit 16
//! bits. Then they are widened and added to sums of 32 bits.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use std::arch::x86_64::*;

use crate::kernels::{Line, PANEL, Quad, bits, prefetch_after};
use crate::ternary::{
    activations::{self, TokenScale},
    layout::QUADS,
};

pub(super) fn quantise(x: &[f32], codes: &mut [i8]) -> TokenScale {
    #[target_feature(enable = "avx2")]
    fn compiled(x: &[f32], codes: &mut [i8]) -> TokenScale {
        activations::quantise(x, codes)
    }
    // SAFETY: `Instructions::Avx2` and `AvxVnni` are made only where the instructions were detected.
    unsafe { compiled(x, codes) }
}

pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        // SAFETY: `Instructions::Avx2` is made only where the instructions were detected.
        *sums = unsafe { panel_sums(panel, quads) };
    }
}

pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    for (panel, codes) in codes.chunks_exact(codes.len() / panels).enumerate() {
        let mut first = 0;
        while first < tokens {
            let sums = sums[first * panels + panel..].iter_mut().step_by(panels);
            // SAFETY: `Instructions::Avx2` is made only where the instructions were detected.
            first += unsafe {
                match tokens - first {
                    4.. => tile::<4>(codes, &quads[first..], tokens, sums),
                    2.. => tile::<2>(codes, &quads[first..], tokens, sums),
                    _ => tile::<1>(codes, &quads[first..], tokens, sums),
                }
            };
        }
    }
}

/// Lines whose products fit 16 bits where codes are left multiplied by 4: a line adds two sums of at least -2048.
const LINES: usize = 8;

/// The sums of a panel's rows. A shift is saved where a mask leaves codes times 4, whose products are added up apart.
#[target_feature(enable = "avx2")]
fn panel_sums(panel: &[Line], quads: &[Quad]) -> [i32; PANEL] {
    let (low, high) = (_mm256_set1_epi8(3), _mm256_set1_epi8(12));
    let mut wide = [[_mm256_setzero_si256(); 2]; 2];
    for (lines, quads) in panel.chunks(LINES).zip(quads.chunks(LINES * QUADS)) {
        let mut sums = [[_mm256_setzero_si256(); 2]; 2];
        for (line, quads) in lines.iter().zip(quads.as_chunks::<QUADS>().0) {
            prefetch_after(line);
            let line = load(line);
            let mut broadcast = [_mm256_setzero_si256(); QUADS];
            for i in 0..QUADS {
                broadcast[i] = _mm256_set1_epi32(bits(quads[i]));
            }
            for half in 0..2 {
                let shifted = _mm256_srli_epi16::<4>(line[half]);
                let codes = [line[half], shifted];
                for i in 0..2 {
                    let ones = _mm256_maddubs_epi16(_mm256_and_si256(codes[i], low), broadcast[2 * i]);
                    let fours = _mm256_maddubs_epi16(_mm256_and_si256(codes[i], high), broadcast[2 * i + 1]);
                    sums[half][0] = _mm256_add_epi16(sums[half][0], ones);
                    sums[half][1] = _mm256_add_epi16(sums[half][1], fours);
                }
            }
        }
        for half in 0..2 {
            for i in 0..2 {
                wide[half][i] = _mm256_add_epi32(wide[half][i], widen(sums[half][i]));
            }
        }
    }
    let mut totals = [_mm256_setzero_si256(); 2];
    for half in 0..2 {
        totals[half] = _mm256_add_epi32(wide[half][0], _mm256_srai_epi32::<2>(wide[half][1]));
    }
    store(totals)
}

/// Columns of quads whose products fit 16 bits.
const DEPTH: usize = 64;

/// The products of `N` tokens with a panel, kept in registers: every loop over them has a constant count. Answers `N`.
#[target_feature(enable = "avx2")]
fn tile<'a, const N: usize>(
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    out: impl Iterator<Item = &'a mut [i32; PANEL]>,
) -> usize {
    let mut wide = [[_mm256_setzero_si256(); 2]; N];
    for (codes, quads) in codes.chunks(DEPTH).zip(quads.chunks(DEPTH * stride)) {
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (codes, quads) in codes.iter().zip(quads.chunks(stride)) {
            let Some(quads) = quads.first_chunk::<N>() else { break };
            let codes = load(codes);
            for n in 0..N {
                let quad = _mm256_set1_epi32(bits(quads[n]));
                for half in 0..2 {
                    let products = _mm256_maddubs_epi16(codes[half], quad);
                    sums[n][half] = _mm256_add_epi16(sums[n][half], products);
                }
            }
        }
        for n in 0..N {
            for half in 0..2 {
                wide[n][half] = _mm256_add_epi32(wide[n][half], widen(sums[n][half]));
            }
        }
    }
    out.zip(wide).for_each(|(out, sums)| *out = store(sums));
    N
}

/// Sums of neighbours, in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(sums: __m256i) -> __m256i {
    _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
}

/// The two halves of a line: rows 0 to 7 and 8 to 15.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(line: &Line) -> [__m256i; 2] {
    let start = line.0.as_ptr().cast();
    // SAFETY: a line is 64 bytes that start at a multiple of 64.
    unsafe { [_mm256_load_si256(start), _mm256_load_si256(start.add(1))] }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(sums: [__m256i; 2]) -> [i32; PANEL] {
    let mut out = [0; PANEL];
    let start = out.as_mut_ptr().cast::<__m256i>();
    // SAFETY: there is room for 16 numbers of 32 bits.
    unsafe {
        _mm256_storeu_si256(start, sums[0]);
        _mm256_storeu_si256(start.add(1), sums[1]);
    }
    out
}
