//! 512-bit dot products of bytes (AVX512-VNNI): a line is a vector, and every lane of 32 bits the sum of a row.
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
    #[target_feature(enable = "avx512f,avx512bw")]
    fn compiled(x: &[f32], codes: &mut [i8]) -> TokenScale {
        activations::quantise(x, codes)
    }
    // SAFETY: `Instructions::Avx512Vnni` is made only where the instructions were detected.
    unsafe { compiled(x, codes) }
}

pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        // SAFETY: `Instructions::Avx512Vnni` is made only where the instructions were detected.
        *sums = unsafe { panel_sums(panel, quads) };
    }
}

pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    let mut first = 0;
    while first < tokens {
        let quads = &quads[first..];
        let sums = &mut sums[first * panels..];
        // SAFETY: `Instructions::Avx512Vnni` is made only where the instructions were detected.
        first += unsafe {
            match tokens - first {
                12.. => tile::<12>(codes, quads, tokens, panels, sums),
                8.. => tile::<8>(codes, quads, tokens, panels, sums),
                4.. => tile::<4>(codes, quads, tokens, panels, sums),
                2.. => tile::<2>(codes, quads, tokens, panels, sums),
                _ => tile::<1>(codes, quads, tokens, panels, sums),
            }
        };
    }
}

/// The sums of a panel's rows. A shift is saved where a mask leaves the codes of columns `4 i..4 i + 4` times `4^i`, whose
/// products are added up apart. Two lines at a time hide the latency.
#[target_feature(enable = "avx512f,avx512vnni")]
fn panel_sums(panel: &[Line], quads: &[Quad]) -> [i32; PANEL] {
    let mut sums = [[_mm512_setzero_si512(); 4]; 2];
    let (pairs, rest) = panel.as_chunks::<2>();
    let (quads, _) = quads.as_chunks::<QUADS>();
    let (quad_pairs, quad_rest) = quads.as_chunks::<2>();
    for (lines, quads) in pairs.iter().zip(quad_pairs) {
        for half in 0..2 {
            add_line(&mut sums[half], &lines[half], &quads[half]);
        }
    }
    for (line, quads) in rest.iter().zip(quad_rest) {
        add_line(&mut sums[0], line, quads);
    }
    let [a, b] = sums;
    let mut total = _mm512_add_epi32(a[0], b[0]);
    total = _mm512_add_epi32(total, _mm512_srai_epi32::<2>(_mm512_add_epi32(a[1], b[1])));
    total = _mm512_add_epi32(total, _mm512_srai_epi32::<4>(_mm512_add_epi32(a[2], b[2])));
    total = _mm512_add_epi32(total, _mm512_srai_epi32::<6>(_mm512_add_epi32(a[3], b[3])));
    store(total)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_line(sums: &mut [__m512i; 4], line: &Line, quads: &[Quad; QUADS]) {
    prefetch_after(line);
    let line = load(line);
    for i in 0..4 {
        let codes = _mm512_and_si512(line, _mm512_set1_epi8((3_u8 << (2 * i)).cast_signed()));
        sums[i] = _mm512_dpbusd_epi32(sums[i], codes, _mm512_set1_epi32(bits(quads[i])));
    }
}

/// The products of `N` tokens with one panel or two; answers `N`.
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile<const N: usize>(
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    panels: usize,
    sums: &mut [[i32; PANEL]],
) -> usize {
    let mut panel = 0;
    while panel < panels {
        let per_panel = codes.len() / panels;
        let codes = &codes[panel * per_panel..];
        let count = if panel + 2 <= panels {
            let tile =
                tile_sums::<N, 2>([&codes[..per_panel], &codes[per_panel..][..per_panel]], quads, stride);
            for n in 0..N {
                sums[n * panels + panel] = store(tile[n][0]);
                sums[n * panels + panel + 1] = store(tile[n][1]);
            }
            2
        } else {
            let tile = tile_sums::<N, 1>([&codes[..per_panel]], quads, stride);
            for n in 0..N {
                sums[n * panels + panel] = store(tile[n][0]);
            }
            1
        };
        panel += count;
    }
    N
}

/// The products of `N` tokens with `P` panels, kept in registers: every loop over them has a constant count.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_sums<const N: usize, const P: usize>(
    codes: [&[Line]; P],
    quads: &[Quad],
    stride: usize,
) -> [[__m512i; P]; N] {
    let mut sums = [[_mm512_setzero_si512(); P]; N];
    let count = codes[0].len();
    for p in 0..P {
        assert_eq!(codes[p].len(), count);
    }
    for (column, quads) in quads.chunks(stride).take(count).enumerate() {
        let Some(quads) = quads.first_chunk::<N>() else { break };
        let mut columns = [_mm512_setzero_si512(); P];
        for p in 0..P {
            columns[p] = load(&codes[p][column]);
        }
        for n in 0..N {
            let quad = _mm512_set1_epi32(bits(quads[n]));
            for p in 0..P {
                sums[n][p] = _mm512_dpbusd_epi32(sums[n][p], columns[p], quad);
            }
        }
    }
    sums
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes that start at a multiple of 64.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sums: __m512i) -> [i32; PANEL] {
    let mut out = [0; PANEL];
    // SAFETY: there is room for 16 numbers of 32 bits.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
    out
}
