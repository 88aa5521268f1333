//! NEON without dot products: products of bytes are added up in 16 bits (`smlal`): a quarter of a line is a vector.
//!
//! A code is at most 2 and an activation at least -128, so a product is at least -256, and 128 of them fit 16 bits. Then
//! they are widened and added to sums of 32 bits.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use std::arch::aarch64::*;

use crate::kernels::{Line, PANEL, Quad, bits};
use crate::ternary::layout::QUADS;

/// Products that fit 16 bits.
const DEPTH: usize = 128;

pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        // SAFETY: `Instructions::Neon` is made only where the instructions were detected.
        *sums = unsafe { panel_sums(panel, quads) };
    }
}

pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    for (panel, codes) in codes.chunks_exact(codes.len() / panels).enumerate() {
        let mut first = 0;
        while first < tokens {
            let sums = sums[first * panels + panel..].iter_mut().step_by(panels);
            // SAFETY: `Instructions::Neon` is made only where the instructions were detected.
            first += unsafe {
                match tokens - first {
                    2.. => tile::<2>(codes, &quads[first..], tokens, sums),
                    _ => tile::<1>(codes, &quads[first..], tokens, sums),
                }
            };
        }
    }
}

/// The sums of a panel's rows.
#[target_feature(enable = "neon")]
fn panel_sums(panel: &[Line], quads: &[Quad]) -> [i32; PANEL] {
    let mut wide = [vdupq_n_s32(0); 4];
    for (lines, quads) in panel.chunks(DEPTH / QUADS).zip(quads.chunks(DEPTH)) {
        let mut sums = [[vdupq_n_s16(0); 2]; 4];
        for (line, quads) in lines.iter().zip(quads.as_chunks::<QUADS>().0) {
            let line = load(line);
            for quarter in 0..4 {
                let codes = [
                    line[quarter],
                    vshrq_n_u8::<2>(line[quarter]),
                    vshrq_n_u8::<4>(line[quarter]),
                    vshrq_n_u8::<6>(line[quarter]),
                ];
                for i in 0..QUADS {
                    let codes = vandq_u8(codes[i], vdupq_n_u8(3));
                    add_products(&mut sums[quarter], codes, quads[i]);
                }
            }
        }
        for quarter in 0..4 {
            wide[quarter] = vaddq_s32(wide[quarter], widen(sums[quarter]));
        }
    }
    store(wide)
}

/// The products of `N` tokens with a panel, kept in registers: every loop over them has a constant count. Answers `N`.
#[target_feature(enable = "neon")]
fn tile<'a, const N: usize>(
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    out: impl Iterator<Item = &'a mut [i32; PANEL]>,
) -> usize {
    let mut wide = [[vdupq_n_s32(0); 4]; N];
    for (codes, quads) in codes.chunks(DEPTH).zip(quads.chunks(DEPTH * stride)) {
        let mut sums = [[[vdupq_n_s16(0); 2]; 4]; N];
        for (codes, quads) in codes.iter().zip(quads.chunks(stride)) {
            let Some(quads) = quads.first_chunk::<N>() else { break };
            let codes = load(codes);
            for n in 0..N {
                for quarter in 0..4 {
                    add_products(&mut sums[n][quarter], codes[quarter], quads[n]);
                }
            }
        }
        for n in 0..N {
            for quarter in 0..4 {
                wide[n][quarter] = vaddq_s32(wide[n][quarter], widen(sums[n][quarter]));
            }
        }
    }
    out.zip(wide).for_each(|(out, sums)| *out = store(sums));
    N
}

/// Adds the products of four columns with rows 0 and 1, and with rows 2 and 3.
#[inline]
#[target_feature(enable = "neon")]
fn add_products(sums: &mut [int16x8_t; 2], codes: uint8x16_t, quad: Quad) {
    let codes = vreinterpretq_s8_u8(codes);
    let quads = vreinterpretq_s8_s32(vdupq_n_s32(bits(quad)));
    sums[0] = vmlal_s8(sums[0], vget_low_s8(codes), vget_low_s8(quads));
    sums[1] = vmlal_high_s8(sums[1], codes, quads);
}

/// The sum of each row's four columns, in 32 bits.
#[inline]
#[target_feature(enable = "neon")]
fn widen(sums: [int16x8_t; 2]) -> int32x4_t {
    vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1]))
}

/// The four quarters of a line, four rows each.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &Line) -> [uint8x16_t; 4] {
    let start = line.0.as_ptr();
    // SAFETY: a line is four times 16 bytes.
    unsafe { [vld1q_u8(start), vld1q_u8(start.add(16)), vld1q_u8(start.add(32)), vld1q_u8(start.add(48))] }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(sums: [int32x4_t; 4]) -> [i32; PANEL] {
    let mut out = [0; PANEL];
    for (out, sums) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        // SAFETY: there is room for four numbers of 32 bits.
        unsafe { vst1q_s32(out.as_mut_ptr(), sums) };
    }
    out
}
