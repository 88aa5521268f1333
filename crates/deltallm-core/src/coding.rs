//! The inner loops of delta coding: pure functions over slices of one key, without branches inside.
//!
//! A flag is 1 or 0, one byte a channel, until [`pack`] makes bits of them: comparisons of bytes are vectorised, shifts of
//! single bits are not.

use crate::quantise::nearest;

/// Flags the channels that have moved by more than `factor` times their threshold (`docs/method.md`, equation 1).
#[inline]
pub(crate) fn moved(key: &[f32], reference: &[f32], thresholds: &[f32], factor: f32, flags: &mut [u8]) {
    for (((flag, k), r), theta) in flags.iter_mut().zip(key).zip(reference).zip(thresholds) {
        *flag = u8::from((k - r).abs() > theta * factor);
    }
}

/// Flags the channels that are not zero, besides those that are flagged.
#[inline]
pub(crate) fn or_nonzero(key: &[f32], flags: &mut [u8]) {
    for (flag, k) in flags.iter_mut().zip(key) {
        *flag |= u8::from(*k != 0.0);
    }
}

/// Flags the channels that are set in `words`, and no others.
#[inline]
pub(crate) fn unpack(words: &[u64], flags: &mut [u8]) {
    for (flags, word) in flags.chunks_mut(64).zip(words) {
        for (flag, bit) in flags.iter_mut().zip(0..) {
            *flag = (word >> bit) as u8 & 1;
        }
    }
}

/// Flags as bits, channel `j` at bit `j % 64` of word `j / 64`.
#[inline]
pub(crate) fn pack(flags: &[u8], words: &mut [u64]) {
    // The product gathers the lowest bit of every byte in its highest byte.
    let bits = |bytes: [u8; 8]| u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    for (flags, word) in flags.chunks(64).zip(words) {
        let (whole, rest) = flags.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // The channels that are left come after the others; with 64 channels none are, and they are shifted out.
        *word = bits(last).checked_shl(8 * whole.len() as u32).unwrap_or(0);
        for (bytes, shift) in whole.iter().zip((0..).step_by(8)) {
            *word |= bits(*bytes) << shift;
        }
    }
}

/// Takes the new value in the flagged channels.
#[inline]
pub(crate) fn select(flags: &[u8], new: &[f32], reference: &mut [f32]) {
    for ((r, x), flag) in reference.iter_mut().zip(new).zip(flags) {
        // With bits: a choice between two numbers in memory would become a branch.
        let mask = u32::from(*flag).wrapping_neg();
        *r = f32::from_bits((x.to_bits() & mask) | (r.to_bits() & !mask));
    }
}

/// The nearest codes in -127..=127: `key / step`.
#[inline]
pub(crate) fn to_codes(key: &[f32], inverse_steps: &[f32], codes: &mut [i8]) {
    for ((code, k), inverse) in codes.iter_mut().zip(key).zip(inverse_steps) {
        let x = k * inverse;
        let x = if x < 127.0 { x } else { 127.0 };
        let x = if x > -127.0 { x } else { -127.0 };
        *code = nearest(x) as i8;
    }
}

/// `code * step`.
#[inline]
pub(crate) fn from_codes(codes: &[i8], steps: &[f32], values: &mut [f32]) {
    for ((value, code), step) in values.iter_mut().zip(codes).zip(steps) {
        *value = f32::from(*code) * step;
    }
}
