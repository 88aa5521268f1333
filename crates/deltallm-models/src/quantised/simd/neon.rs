//! NEON: a quarter of a line is a vector.
//!
//! With dot products of bytes (`sdot`) or without: then products are added up in 16 bits (`smlal`). A code of half a byte is at
//! most 15 and an activation at most 127, so 8 products, 15240, fit. Wide codes less 128 are signed bytes, whose products are
//! widened at once.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, assembly, and functions that need instructions to be there"
)]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use std::arch::{aarch64::*, asm};

use super::tile::{self, Level};
use crate::kernels::{Halves, Line, PANEL, Quad, bits, sdot};
use crate::quantised::{
    activations::Batch,
    layout::{Form, Panel},
};

pub(super) fn multiply_neon(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
    #[target_feature(enable = "neon")]
    fn compiled(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
        // SAFETY: this function has the instructions, and its caller has checked the sizes.
        unsafe { tile::multiply::<Neon<false>, 1, 2>(form, std::array::from_ref(panel), batch, sums) }
    }
    // SAFETY: `Instructions::Neon` is made only where the instructions were detected.
    unsafe { compiled(form, panel, batch, sums) }
}

pub(super) fn multiply_dot(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
    #[target_feature(enable = "neon,dotprod")]
    fn compiled(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
        // SAFETY: this function has the instructions, and its caller has checked the sizes.
        unsafe { tile::multiply::<Neon<true>, 1, 4>(form, std::array::from_ref(panel), batch, sums) }
    }
    // SAFETY: `Instructions::NeonDot` is made only where the instructions were detected.
    unsafe { compiled(form, panel, batch, sums) }
}

/// NEON, with dot products or without.
struct Neon<const DOT: bool>;

// SAFETY of all blocks: as the caller promises; a quarter of a line and 4 numbers are as long as the vectors that are read and
// written, and assembly reads and writes the named registers alone.
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl<const DOT: bool> Level for Neon<DOT> {
    const SIGNED: bool = true;

    /// Codes, less 128 where they are wide.
    type Codes = [int8x16_t; 4];
    /// Without dot products, for codes of half a byte: eight sums of 16 bits, two for each row, in two vectors.
    type Sums = [[int32x4_t; 2]; 4];
    type Floats = [float32x4_t; 4];

    #[inline(always)]
    unsafe fn low(line: &Line) -> Self::Codes {
        unsafe {
            let mut codes = [vdupq_n_s8(0); 4];
            for quarter in 0..4 {
                let bytes = vld1q_u8(line.0.as_ptr().add(16 * quarter));
                codes[quarter] = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0xf)));
            }
            codes
        }
    }

    #[inline(always)]
    unsafe fn high(line: &Line) -> Self::Codes {
        unsafe {
            let mut codes = [vdupq_n_s8(0); 4];
            for quarter in 0..4 {
                let bytes = vld1q_u8(line.0.as_ptr().add(16 * quarter));
                codes[quarter] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes));
            }
            codes
        }
    }

    #[inline(always)]
    unsafe fn wide(line: &Line) -> Self::Codes {
        unsafe {
            let mut codes = [vdupq_n_s8(0); 4];
            for quarter in 0..4 {
                let bytes = vld1q_u8(line.0.as_ptr().add(16 * quarter));
                codes[quarter] = vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)));
            }
            codes
        }
    }

    #[inline(always)]
    unsafe fn begin(start: i32) -> Self::Sums {
        unsafe { [[vdupq_n_s32(if DOT { start } else { 0 }), vdupq_n_s32(0)]; 4] }
    }

    #[inline(always)]
    unsafe fn add<const WIDE: bool>(mut sums: Self::Sums, codes: Self::Codes, quad: Quad) -> Self::Sums {
        unsafe {
            let quads = vreinterpretq_s8_s32(vdupq_n_s32(bits(quad)));
            for quarter in 0..4 {
                let [first, second] = sums[quarter];
                sums[quarter] = if DOT {
                    [sdot(first, codes[quarter], quads), second]
                } else if WIDE {
                    let low = vmull_s8(vget_low_s8(codes[quarter]), vget_low_s8(quads));
                    let high = vmull_high_s8(codes[quarter], quads);
                    [vpadalq_s16(first, low), vpadalq_s16(second, high)]
                } else {
                    let (first, second) = (vreinterpretq_s16_s32(first), vreinterpretq_s16_s32(second));
                    let low = vmlal_s8(first, vget_low_s8(codes[quarter]), vget_low_s8(quads));
                    let high = vmlal_high_s8(second, codes[quarter], quads);
                    [vreinterpretq_s32_s16(low), vreinterpretq_s32_s16(high)]
                };
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn total<const WIDE: bool>(sums: Self::Sums, start: i32) -> Self::Floats {
        unsafe {
            let mut totals = Self::zero();
            for quarter in 0..4 {
                let [mut first, mut second] = sums[quarter];
                if !DOT {
                    if !WIDE {
                        first = vpaddlq_s16(vreinterpretq_s16_s32(first));
                        second = vpaddlq_s16(vreinterpretq_s16_s32(second));
                    }
                    first = vaddq_s32(vpaddq_s32(first, second), vdupq_n_s32(start));
                }
                totals[quarter] = vcvtq_f32_s32(first);
            }
            totals
        }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::Floats {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }

    /// The intrinsic, `vcvt_f32_f16`, is not stable yet.
    #[inline(always)]
    unsafe fn widen(halves: &Halves) -> Self::Floats {
        unsafe {
            let mut wide = Self::zero();
            for quarter in 0..4 {
                let halves = vld1_u16(halves.0.as_ptr().add(4 * quarter).cast());
                asm!(
                    "fcvtl {wide:v}.4s, {halves:v}.4h",
                    wide = out(vreg) wide[quarter],
                    halves = in(vreg) halves,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            wide
        }
    }

    #[inline(always)]
    unsafe fn load(row: &[f32; PANEL]) -> Self::Floats {
        unsafe {
            let mut floats = Self::zero();
            for quarter in 0..4 {
                floats[quarter] = vld1q_f32(row.as_ptr().add(4 * quarter));
            }
            floats
        }
    }

    #[inline(always)]
    unsafe fn store(floats: Self::Floats, row: &mut [f32; PANEL]) {
        for quarter in 0..4 {
            unsafe { vst1q_f32(row.as_mut_ptr().add(4 * quarter), floats[quarter]) };
        }
    }

    #[inline(always)]
    unsafe fn scale(mut a: Self::Floats, b: f32) -> Self::Floats {
        for quarter in 0..4 {
            a[quarter] = unsafe { vmulq_f32(a[quarter], vdupq_n_f32(b)) };
        }
        a
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, mut c: Self::Floats) -> Self::Floats {
        for quarter in 0..4 {
            c[quarter] = unsafe { vfmaq_f32(c[quarter], a[quarter], b[quarter]) };
        }
        c
    }

    #[inline(always)]
    unsafe fn multiply_add_one(a: Self::Floats, b: f32, c: Self::Floats) -> Self::Floats {
        unsafe { Self::multiply_add(a, [vdupq_n_f32(b); 4], c) }
    }
}
