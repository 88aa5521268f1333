//! The types with super-blocks of 256 elements: `block_q4_K`, `block_q5_K` and `block_q6_K` of `ggml-common.h`.
//!
//! ```text
//! Q4_K   f16 d, f16 dmin, 12 bytes of scales, 128 bytes of nibbles
//! Q5_K   f16 d, f16 dmin, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes of nibbles
//! Q6_K   128 bytes of nibbles, 64 bytes of upper bit pairs, 16 x i8 scales, f16 d
//! ```
//! Q4_K and Q5_K have 8 groups of 32 with 6-bit scale and minimum: `x = d * scale * q - dmin * min`. Each run of 32
//! nibble bytes holds two groups, the first in the low halves. Q6_K has 16 groups of 16: `x = d * scale * (q - 32)`.

use super::{Factors, float::scale};

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (scales, packed) = block[4..].split_at(12);
    let (pairs, _) = out.as_chunks_mut::<64>();
    for (pair, (packed, out)) in packed.chunks_exact(32).zip(pairs).enumerate() {
        let (s0, m0) = scale_and_min(scales, 2 * pair);
        let (s1, m1) = scale_and_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        let (low, high) = out.split_at_mut(32);
        for ((byte, low), high) in packed.iter().zip(low).zip(high) {
            *low = d0 * f32::from(byte & 0xf) - m0;
            *high = d1 * f32::from(byte >> 4) - m1;
        }
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (scale(block, 0), scale(block, 2));
    let (scales, rest) = block[4..].split_at(12);
    let (fifth, packed) = rest.split_at(32);
    let (pairs, _) = out.as_chunks_mut::<64>();
    for (pair, (packed, out)) in packed.chunks_exact(32).zip(pairs).enumerate() {
        let (s0, m0) = scale_and_min(scales, 2 * pair);
        let (s1, m1) = scale_and_min(scales, 2 * pair + 1);
        let (d0, m0, d1, m1) = (d * s0, dmin * m0, d * s1, dmin * m1);
        let (low, high) = out.split_at_mut(32);
        // Bit g of fifth-bit byte i belongs to element i of group g.
        for (((byte, fifth), low), high) in packed.iter().zip(fifth).zip(low).zip(high) {
            let bits = fifth >> (2 * pair);
            *low = d0 * f32::from((byte & 0xf) | ((bits & 1) << 4)) - m0;
            *high = d1 * f32::from((byte >> 4) | ((bits & 2) << 3)) - m1;
        }
    }
}

pub(super) fn q4_k_codes(block: &[u8; 144], out: &mut [u8; 256]) -> [Factors; 8] {
    let (scales, packed) = block[4..].split_at(12);
    for (packed, out) in packed.chunks_exact(32).zip(out.as_chunks_mut::<64>().0) {
        let (low, high) = out.split_at_mut(32);
        for ((byte, low), high) in packed.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 0xf, byte >> 4);
        }
    }
    group_factors([scale(block, 0), scale(block, 2)], scales)
}

pub(super) fn q5_k_codes(block: &[u8; 176], out: &mut [u8; 256]) -> [Factors; 8] {
    let (scales, rest) = block[4..].split_at(12);
    let (fifth, packed) = rest.split_at(32);
    for (pair, (packed, out)) in packed.chunks_exact(32).zip(out.as_chunks_mut::<64>().0).enumerate() {
        let (low, high) = out.split_at_mut(32);
        for (((byte, fifth), low), high) in packed.iter().zip(fifth).zip(low).zip(high) {
            let bits = fifth >> (2 * pair);
            *low = (byte & 0xf) | ((bits & 1) << 4);
            *high = (byte >> 4) | ((bits & 2) << 3);
        }
    }
    group_factors([scale(block, 0), scale(block, 2)], scales)
}

/// The factors of the 8 groups of `Q4_K` and `Q5_K`.
fn group_factors([d, dmin]: [f32; 2], scales: &[u8]) -> [Factors; 8] {
    std::array::from_fn(|group| {
        let (scale, min) = scale_and_min(scales, group);
        Factors { scale: d * scale, minimum: -(dmin * min) }
    })
}

/// Scale and minimum of group `g` of 8, six bits each.
///
/// Bytes 0..4 hold the scales of groups 0..4 and, in their upper bit pairs, bits 4 and 5 of the scales of groups 4..8;
/// bytes 4..8 the same for the minima; bytes 8..12 the lower four bits of scales (low half) and minima of groups 4..8.
#[inline(always)]
fn scale_and_min(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, min) = if g < 4 {
        (packed[g] & 0x3f, packed[g + 4] & 0x3f)
    } else {
        let low = packed[g + 4];
        ((low & 0xf) | ((packed[g - 4] >> 6) << 4), (low >> 4) | ((packed[g] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    let groups = q6_k_codes(block, &mut codes);
    for ((codes, out), group) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<16>().0).zip(groups)
    {
        for (q, value) in codes.iter().zip(out) {
            *value = group.scale * (f32::from(*q) - 32.0);
        }
    }
}

pub(super) fn q6_k_codes(block: &[u8; 210], out: &mut [u8; 256]) -> [Factors; 16] {
    let d = scale(block, 208);
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    // Each half of 128 elements has 64 nibble bytes and 32 bytes of bit pairs: quarter k of it takes the low (k < 2)
    // or high halves of nibble bytes 32 (k % 2) .. and bits 2k, 2k + 1.
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let low = &low[64 * half..][..64];
        let high = &high[32 * half..][..32];
        for (k, quarter) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = &low[32 * (k % 2)..][..32];
            for i in 0..32 {
                quarter[i] = ((low[i] >> (4 * (k / 2))) & 0xf) | (((high[i] >> (2 * k)) & 3) << 4);
            }
        }
    }
    std::array::from_fn(|group| Factors { scale: d * f32::from(rest[group] as i8), minimum: 0.0 })
}
