//! 256-bit dot products of bytes (AVX-VNNI): half a line is a vector.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use std::arch::x86_64::*;

use super::avx2::{load, store};
use crate::kernels::{Line, PANEL, Quad, bits, prefetch_after};
use crate::ternary::layout::QUADS;

pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        // SAFETY: `Instructions::AvxVnni` is made only where the instructions were detected.
        *sums = unsafe { panel_sums(panel, quads) };
    }
}

pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    for (panel, codes) in codes.chunks_exact(codes.len() / panels).enumerate() {
        let mut first = 0;
        while first < tokens {
            let sums = sums[first * panels + panel..].iter_mut().step_by(panels);
            // SAFETY: `Instructions::AvxVnni` is made only where the instructions were detected.
            first += unsafe {
                match tokens - first {
                    6.. => tile::<6>(codes, &quads[first..], tokens, sums),
                    4.. => tile::<4>(codes, &quads[first..], tokens, sums),
                    2.. => tile::<2>(codes, &quads[first..], tokens, sums),
                    _ => tile::<1>(codes, &quads[first..], tokens, sums),
                }
            };
        }
    }
}

/// The sums of a panel's rows. A shift is saved where a mask leaves the codes of columns `4 i..4 i + 4` times `4^i`, whose
/// products are added up apart.
#[target_feature(enable = "avx2,avxvnni")]
fn panel_sums(panel: &[Line], quads: &[Quad]) -> [i32; PANEL] {
    let mut sums = [[_mm256_setzero_si256(); 4]; 2];
    for (line, quads) in panel.iter().zip(quads.as_chunks::<QUADS>().0) {
        prefetch_after(line);
        let line = load(line);
        for i in 0..4 {
            let mask = _mm256_set1_epi8((3_u8 << (2 * i)).cast_signed());
            let quad = _mm256_set1_epi32(bits(quads[i]));
            for half in 0..2 {
                let codes = _mm256_and_si256(line[half], mask);
                sums[half][i] = _mm256_dpbusd_avx_epi32(sums[half][i], codes, quad);
            }
        }
    }
    let mut totals = [_mm256_setzero_si256(); 2];
    for half in 0..2 {
        let [a, b, c, d] = sums[half];
        let ab = _mm256_add_epi32(a, _mm256_srai_epi32::<2>(b));
        let cd = _mm256_add_epi32(_mm256_srai_epi32::<4>(c), _mm256_srai_epi32::<6>(d));
        totals[half] = _mm256_add_epi32(ab, cd);
    }
    store(totals)
}

/// The products of `N` tokens with a panel, kept in registers: every loop over them has a constant count. Answers `N`.
#[target_feature(enable = "avx2,avxvnni")]
fn tile<'a, const N: usize>(
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    out: impl Iterator<Item = &'a mut [i32; PANEL]>,
) -> usize {
    let mut sums = [[_mm256_setzero_si256(); 2]; N];
    for (codes, quads) in codes.iter().zip(quads.chunks(stride)) {
        let Some(quads) = quads.first_chunk::<N>() else { break };
        let codes = load(codes);
        for n in 0..N {
            let quad = _mm256_set1_epi32(bits(quads[n]));
            for half in 0..2 {
                sums[n][half] = _mm256_dpbusd_avx_epi32(sums[n][half], codes[half], quad);
            }
        }
    }
    out.zip(sums).for_each(|(out, sums)| *out = store(sums));
    N
}
