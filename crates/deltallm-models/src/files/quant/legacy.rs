//! The types with blocks of 32 elements: `block_q8_0`, `block_q4_0`, `block_q4_1`, `block_q5_0` and `block_q5_1` of
//! `ggml-common.h`.
//!
//! ```text
//! Q8_0   f16 d           32 x i8             x = d * q
//! Q4_0   f16 d           16 bytes of nibbles x = d * (q - 8)
//! Q4_1   f16 d, f16 m    16 bytes of nibbles x = d * q + m
//! Q5_0   f16 d, u32 h    16 bytes of nibbles x = d * (q - 16)
//! Q5_1   f16 d, f16 m, u32 h, 16 bytes       x = d * q + m
//! ```
//! Byte i of the nibbles holds element i (low half) and element i + 16 (high half); bit i of `h` is the fifth bit of
//! element i.

use super::{Factors, float::scale};

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (q, value) in block[2..].iter().zip(out) {
        *value = d * f32::from(*q as i8);
    }
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    nibbles(&block[2..], out, |_, q| d * (f32::from(q) - 8.0));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    nibbles(&block[4..], out, |_, q| d * f32::from(q) + m);
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], out, |i, q| d * (f32::from(q | fifth_bit(high, i)) - 16.0));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], out, |i, q| d * f32::from(q | fifth_bit(high, i)) + m);
}

/// Codes are `q + 128`.
pub(super) fn q8_0_codes(block: &[u8; 34], out: &mut [u8; 32]) -> [Factors; 1] {
    for (q, code) in block[2..].iter().zip(out) {
        *code = q ^ 0x80;
    }
    [Factors { scale: scale(block, 0), minimum: 0.0 }]
}

pub(super) fn q4_0_codes(block: &[u8; 18], out: &mut [u8; 32]) -> [Factors; 1] {
    nibbles(&block[2..], out, |_, q| q);
    [Factors { scale: scale(block, 0), minimum: 0.0 }]
}

pub(super) fn q4_1_codes(block: &[u8; 20], out: &mut [u8; 32]) -> [Factors; 1] {
    nibbles(&block[4..], out, |_, q| q);
    [Factors { scale: scale(block, 0), minimum: scale(block, 2) }]
}

pub(super) fn q5_0_codes(block: &[u8; 22], out: &mut [u8; 32]) -> [Factors; 1] {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    nibbles(&block[6..], out, |i, q| q | fifth_bit(high, i));
    [Factors { scale: scale(block, 0), minimum: 0.0 }]
}

pub(super) fn q5_1_codes(block: &[u8; 24], out: &mut [u8; 32]) -> [Factors; 1] {
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    nibbles(&block[8..], out, |i, q| q | fifth_bit(high, i));
    [Factors { scale: scale(block, 0), minimum: scale(block, 2) }]
}

#[inline(always)]
fn nibbles<T>(packed: &[u8], out: &mut [T; 32], value: impl Fn(usize, u8) -> T) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((byte, low), high)) in packed.iter().zip(low).zip(high).enumerate() {
        *low = value(i, byte & 0xf);
        *high = value(i + 16, byte >> 4);
    }
}

#[inline(always)]
fn fifth_bit(high: u32, i: usize) -> u8 {
    ((high >> i) as u8 & 1) << 4
}
