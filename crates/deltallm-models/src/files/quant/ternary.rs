//! The ternary types: `block_tq1_0` and `block_tq2_0` of `ggml-common.h`, and `I2_S` of the BitNet fork of ggml.
//!
//! ```text
//! TQ1_0   48 bytes of 5 trits, 4 bytes of 4 trits, f16 d   x = d * (q - 1)
//! TQ2_0   64 bytes of 4 x 2 bits, f16 d                    x = d * (q - 1)
//! I2_S    32 bytes of 4 x 2 bits                           x = scale * (q - 1)
//! ```
//! A byte of TQ1_0 is `ceil(256 / 243 * v)` of the number `v` whose ternary digits are the trits, the first the highest:
//! multiplied by 3^n modulo 256, its n-th trit is the whole part of `3 / 256` times it. Elements 0 to 159 are in bytes 0
//! to 31, element `32 n + m` the n-th trit of byte m; 160 to 239 in bytes 32 to 47, in the same way by 16; 240 to 255 in
//! bytes 48 to 51, by 4. TQ2_0 has element `128 j + 32 n + m` in bits 2n and 2n + 1 of byte `32 j + m`.
//!
//! I2_S has blocks of 128 with element `32 n + m` in bits 7 - 2n and 6 - 2n of byte m. The scale is one for the tensor:
//! an f32 at the start of the 32 bytes that follow the last block. (That fork's quantiser, run on Arm, makes blocks of 64
//! instead; nothing in a file says so, and the published ones are of the first kind.)

use super::float::scale;

/// Bytes after the blocks of an `I2_S` tensor, with the scale in front.
pub(crate) const I2_S_TAIL: usize = 32;

const POWERS_OF_3: [u8; 5] = [1, 3, 9, 27, 81];

/// The weights of a block, -1, 0 or 1.
#[inline]
pub(crate) fn tq1_0_codes(block: &[u8; 54], out: &mut [i8; 256]) {
    let (first, rest) = out.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    for (bytes, out) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        for (out, power) in out.chunks_exact_mut(bytes.len()).zip(POWERS_OF_3) {
            for (byte, code) in bytes.iter().zip(out) {
                *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1;
            }
        }
    }
}

/// The weights of a block, -1, 0 or 1, and 2 for a code that has no meaning.
#[inline]
pub(crate) fn tq2_0_codes(block: &[u8; 66], out: &mut [i8; 256]) {
    for (bytes, out) in block[..64].chunks_exact(32).zip(out.chunks_exact_mut(128)) {
        for (n, out) in out.chunks_exact_mut(32).enumerate() {
            two_bits(bytes, 2 * n, out);
        }
    }
}

/// The weights of a block, -1, 0 or 1, and 2 for a code that has no meaning.
#[inline]
pub(crate) fn i2_s_codes(block: &[u8; 32], out: &mut [i8; 128]) {
    for (n, out) in out.chunks_exact_mut(32).enumerate() {
        two_bits(block, 6 - 2 * n, out);
    }
}

/// Two bits of each byte, from bit `shift` on, less one. Eight bytes at a time: loading a large model is mostly this.
#[inline(always)]
fn two_bits(bytes: &[u8], shift: usize, out: &mut [i8]) {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    for (from, to) in bytes.as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<8>().0) {
        let codes = (u64::from_ne_bytes(*from) >> shift) & (3 * ONES);
        // The highest bit of each byte keeps the subtraction from borrowing of the next.
        let weights = ((codes | (ONES << 7)) - ONES) ^ (ONES << 7);
        *to = weights.to_ne_bytes().map(u8::cast_signed);
    }
}

pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    tq1_0_codes(block, &mut codes);
    scaled(&codes, scale(block, 52), out);
}

pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    tq2_0_codes(block, &mut codes);
    scaled(&codes, scale(block, 64), out);
}

/// A whole tensor: blocks and tail.
pub(super) fn i2_s(bytes: &[u8], out: &mut [f32]) {
    let Some((blocks, scale)) = split_i2_s(bytes) else { return };
    for (block, out) in blocks.as_chunks().0.iter().zip(out.chunks_exact_mut(128)) {
        let mut codes = [0; 128];
        i2_s_codes(block, &mut codes);
        scaled(&codes, scale, out);
    }
}

/// The blocks of an `I2_S` tensor and its scale; `None` where there are fewer bytes than the tail has.
pub(crate) fn split_i2_s(bytes: &[u8]) -> Option<(&[u8], f32)> {
    let (blocks, tail) = bytes.split_last_chunk::<I2_S_TAIL>()?;
    let (scale, _) = tail.split_first_chunk()?;
    Some((blocks, f32::from_le_bytes(*scale)))
}

fn scaled(codes: &[i8], scale: f32, out: &mut [f32]) {
    for (code, value) in codes.iter().zip(out) {
        *value = scale * f32::from(*code);
    }
}
