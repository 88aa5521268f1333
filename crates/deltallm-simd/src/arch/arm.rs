//! Products of bytes and of bf16 on 64-bit Arm.
#![allow(
    unsafe_code,
    reason = "instructions that the language has no name for, and calls that a token proves"
)]

use std::arch::{aarch64::*, asm};

use fearless_simd::{Neon, f32x4, i8x16, i32x4, prelude::*, u32x4};

use crate::features::{Bf16Dot, DotProd};

impl DotProd {
    /// Adds to every lane the products of its four bytes with its four of the other, all signed.
    #[inline(always)]
    pub fn dot(self, sums: i32x4<Neon>, a: i8x16<Neon>, b: i8x16<Neon>) -> i32x4<Neon> {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { sdot(sums.into(), a.into(), b.into()) }.simd_into(self.neon())
    }

    /// Adds to every lane the products of its four bytes with the four of lane `LANE` of the other, all signed.
    #[inline(always)]
    pub fn dot_lane<const LANE: usize>(
        self,
        sums: i32x4<Neon>,
        a: i8x16<Neon>,
        b: i8x16<Neon>,
    ) -> i32x4<Neon> {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { sdot_lane::<LANE>(sums.into(), a.into(), b.into()) }.simd_into(self.neon())
    }
}

impl Bf16Dot {
    /// Adds to every lane the products of its two numbers with its two of the other; two bf16 to a lane.
    #[inline(always)]
    pub fn dot(self, sums: f32x4<Neon>, a: u32x4<Neon>, b: u32x4<Neon>) -> f32x4<Neon> {
        // SAFETY: the token proves that the CPU has the instruction.
        unsafe { bfdot(sums.into(), a.into(), b.into()) }.simd_into(self.neon())
    }
}

/// The intrinsic, `vbfdotq_f32`, is not stable yet.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn bfdot(mut sums: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: this function has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "bfdot {sums:v}.4s, {a:v}.8h, {b:v}.8h",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The intrinsic, `vdotq_s32`, is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The intrinsic, `vdotq_laneq_s32`, is not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot_lane<const LANE: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
