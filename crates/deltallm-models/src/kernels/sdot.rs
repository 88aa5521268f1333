//! Arm's dot product of bytes, whose intrinsic, `vdotq_s32`, is not stable yet.
#![allow(unsafe_code, reason = "an instruction that the language has no name for")]

use std::arch::{aarch64::*, asm};

/// `sums[i] + codes[i] . quads[i]`, for vectors of four quads of signed bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn sdot(mut sums: int32x4_t, codes: int8x16_t, quads: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {quads:v}.16b",
            sums = inout(vreg) sums,
            codes = in(vreg) codes,
            quads = in(vreg) quads,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
