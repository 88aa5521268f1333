//! The few vector operations that decoding needs and `fearless_simd` has no name for, per level.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86;

use fearless_simd::{Fallback, prelude::*};
use half::{bf16, f16};

use super::{
    ahead::Ahead,
    dots::dots,
    expand::{Masked, expand_by_bits},
    rows::Strided,
};
use crate::decode::BLOCK;

/// A finite f16 as f32; `f16::to_f32` asks for the CPU's features every time.
#[inline(always)]
pub(super) fn finite(x: f16) -> f32 {
    // Exponent and fraction in their places; the product puts the bias of the exponent right, also for denormals.
    let bits = u32::from(x.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// What [`Lanes::int8_scores`] multiplies the codes of keys with, and where the scores go.
pub(super) struct ToScore<'a> {
    /// `[heads, channels]`, times the steps of the channels.
    pub(super) queries: &'a [f32],
    /// Padded channels.
    pub(super) channels: usize,
    /// `[heads, BLOCK]`.
    pub(super) out: &'a mut [f32],
}

/// Writes the keys out and takes them as rows: exact, in f32.
#[inline(always)]
pub(super) fn expand_and_score<S: Lanes>(
    simd: S,
    block: Masked<i8>,
    skip: usize,
    to: ToScore,
    keys: &mut Vec<i8>,
) {
    let stride = block.room(keys);
    let count = block.tokens() - skip;
    simd.expand_i8(block, keys);
    let rows = Strided { data: &keys[skip * stride..], stride };
    dots(simd, rows, Ahead::default(), count, to.queries, to.channels, to.out, BLOCK);
}

/// Conversions, sums and expansions; every slice of numbers to convert is one vector of f32 long.
pub(super) trait Lanes: Simd {
    /// Query heads that are scored or summed in one pass over the rows: what fits in the registers.
    const HEADS: usize;

    /// binary16 to f32.
    fn f16s(self, x: &[f16]) -> Self::f32s {
        Self::f32s::from_fn(self, |i| finite(x[i]))
    }

    /// bfloat16 to f32.
    fn bf16s(self, x: &[bf16]) -> Self::f32s {
        Self::f32s::from_fn(self, |i| f32::from_bits(u32::from(x[i].to_bits()) << 16))
    }

    /// Signed bytes to f32.
    fn i8s(self, x: &[i8]) -> Self::f32s {
        Self::f32s::from_fn(self, |i| f32::from(x[i]))
    }

    /// The low or the high halves of bytes to f32, unsigned.
    fn nibbles(self, x: &[u8], high: bool) -> Self::f32s {
        Self::f32s::from_fn(self, |i| f32::from(if high { x[i] >> 4 } else { x[i] & 15 }))
    }

    /// The sums over the lanes of four vectors.
    fn sums(self, x: [Self::f32s; 4]) -> [f32; 4] {
        x.map(|x| x.reduce_sum())
    }

    /// Keys of a block of bytes, see [`super::expand`].
    #[inline(always)]
    fn expand_i8(self, block: Masked<i8>, out: &mut [i8]) {
        expand_by_bits::<Self, Self::i8s>(self, block, out);
    }

    /// `out[head * BLOCK + i] = queries[head] . keys[skip + i]` for the keys of a block of bytes; `queries` is
    /// `[heads, channels]`, `keys` room for the keys.
    #[inline(always)]
    fn int8_scores(self, block: Masked<i8>, skip: usize, to: ToScore, keys: &mut Vec<i8>) {
        expand_and_score(self, block, skip, to, keys);
    }

    /// Keys of a block of 16-bit numbers.
    #[inline(always)]
    fn expand_u16(self, block: Masked<u16>, out: &mut [u16]) {
        expand_by_bits::<Self, Self::u16s>(self, block, out);
    }

    /// Keys of a block of f32.
    #[inline(always)]
    fn expand_f32(self, block: Masked<f32>, out: &mut [f32]) {
        expand_by_bits::<Self, Self::f32s>(self, block, out);
    }

    /// Asks for the cache line at an address.
    fn prefetch(self, address: *const u8) {
        let _ = address;
    }
}

impl Lanes for Fallback {
    const HEADS: usize = 2;
}
