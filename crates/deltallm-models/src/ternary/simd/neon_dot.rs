//! Dot products of bytes on Arm (`sdot`): a quarter of a line is a vector, and every lane of 32 bits the sum of a row.
#![allow(unsafe_code, reason = "functions that need instructions to be there")]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use std::arch::aarch64::*;

use super::neon::{load, store};
use crate::kernels::{Line, PANEL, Quad, bits, sdot};
use crate::ternary::layout::QUADS;

pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        // SAFETY: `Instructions::NeonDot` is made only where the instructions were detected.
        *sums = unsafe { panel_sums(panel, quads) };
    }
}

pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    for (panel, codes) in codes.chunks_exact(codes.len() / panels).enumerate() {
        let mut first = 0;
        while first < tokens {
            let sums = sums[first * panels + panel..].iter_mut().step_by(panels);
            // SAFETY: `Instructions::NeonDot` is made only where the instructions were detected.
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

/// The sums of a panel's rows. Shifts are saved where a mask leaves the codes of columns `4 i..4 i + 4` times `4^i`, whose
/// products are added up apart; not for the last, which the sign would be in the way of.
#[target_feature(enable = "neon,dotprod")]
fn panel_sums(panel: &[Line], quads: &[Quad]) -> [i32; PANEL] {
    let mut sums = [[vdupq_n_s32(0); 4]; 4];
    for (line, quads) in panel.iter().zip(quads.as_chunks::<QUADS>().0) {
        let line = load(line);
        let mut broadcast = [vdupq_n_s32(0); QUADS];
        for i in 0..QUADS {
            broadcast[i] = vdupq_n_s32(bits(quads[i]));
        }
        for quarter in 0..4 {
            let codes = [
                vandq_u8(line[quarter], vdupq_n_u8(3)),
                vandq_u8(line[quarter], vdupq_n_u8(12)),
                vandq_u8(line[quarter], vdupq_n_u8(48)),
                vshrq_n_u8::<6>(line[quarter]),
            ];
            for i in 0..QUADS {
                sums[quarter][i] = dot(sums[quarter][i], codes[i], broadcast[i]);
            }
        }
    }
    let mut totals = [vdupq_n_s32(0); 4];
    for quarter in 0..4 {
        let [a, b, c, d] = sums[quarter];
        totals[quarter] = vaddq_s32(vsraq_n_s32::<2>(a, b), vsraq_n_s32::<4>(d, c));
    }
    store(totals)
}

/// The products of `N` tokens with a panel, kept in registers: every loop over them has a constant count. Answers `N`.
#[target_feature(enable = "neon,dotprod")]
fn tile<'a, const N: usize>(
    codes: &[Line],
    quads: &[Quad],
    stride: usize,
    out: impl Iterator<Item = &'a mut [i32; PANEL]>,
) -> usize {
    let mut sums = [[vdupq_n_s32(0); 4]; N];
    for (codes, quads) in codes.iter().zip(quads.chunks(stride)) {
        let Some(quads) = quads.first_chunk::<N>() else { break };
        let codes = load(codes);
        for n in 0..N {
            let quad = vdupq_n_s32(bits(quads[n]));
            for quarter in 0..4 {
                sums[n][quarter] = dot(sums[n][quarter], codes[quarter], quad);
            }
        }
    }
    out.zip(sums).for_each(|(out, sums)| *out = store(sums));
    N
}

/// `sums[i] + codes[i] . quads[i]`, for vectors of four quads; codes are below 128.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(sums: int32x4_t, codes: uint8x16_t, quads: int32x4_t) -> int32x4_t {
    sdot(sums, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(quads))
}
