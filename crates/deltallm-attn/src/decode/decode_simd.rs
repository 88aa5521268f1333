//! The few vector operations that decoding needs and `fearless_simd` has no name for, by instruction set.

use deltallm_core::{BLOCK_TOKENS, internal::Int8Rows};
use deltallm_simd::{
    convert::Convert,
    fearless_simd::{Fallback, prelude::*},
};

use super::{
    ahead::Ahead,
    expand::{Masked, expand_by_bits},
    queries::CodedQueries,
};

/// Where the scores of keys of 8 bits go, and what they are for.
#[cfg_attr(
    not(any(target_arch = "x86", target_arch = "x86_64")),
    expect(dead_code, reason = "read where there are integer products")
)]
pub(crate) struct ToScore<'a> {
    pub(crate) queries: &'a CodedQueries,
    /// Padded channels.
    pub(crate) channels: usize,
    /// Keys of the block that are left out.
    pub(crate) skip: usize,
    /// Memory to ask for meanwhile.
    pub(crate) ahead: [Ahead; 2],
    /// `[heads, BLOCK_TOKENS]`, or from the block's key on that the first one is.
    pub(crate) out: &'a mut [f32],
}

/// Sums and expansions; every slice of numbers to convert is one vector of f32 long.
pub(crate) trait DecodeSimd: Convert {
    /// Query heads that are scored or summed in one pass over the rows: what fits in the registers.
    const HEADS: usize;

    /// Registers of vectors.
    const REGISTERS: usize;

    /// The low or the high halves of bytes to f32, unsigned, less 8.
    fn nibbles(self, x: &[u8], high: bool) -> Self::f32s {
        Self::f32s::from_fn(self, |i| f32::from(if high { x[i] >> 4 } else { x[i] & 15 }) - 8.0)
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

    /// Integer products of 16-bit queries with the keys of a block of bytes. False, and nothing done, where there are none.
    #[inline(always)]
    fn delta_scores(self, block: Masked<i8>, to: ToScore, keys: &mut Vec<i8>) -> bool {
        let _ = (block, to, keys);
        false
    }

    /// The same with `count` rows of bytes and scales.
    #[inline(always)]
    fn int8_scores(self, rows: Int8Rows, count: usize, to: ToScore) -> bool {
        let _ = (rows, count, to);
        false
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

    /// The numbers of the bits that are set, ascending.
    #[inline(always)]
    fn numbers(self, bits: u64, numbers: &mut [u8; BLOCK_TOKENS]) {
        let mut rest = bits;
        for number in numbers.iter_mut().take(bits.count_ones() as usize) {
            *number = rest.trailing_zeros() as u8;
            rest &= rest.wrapping_sub(1);
        }
    }
}

impl DecodeSimd for Fallback {
    const HEADS: usize = 2;
    const REGISTERS: usize = 16;
}

/// f32 lanes of a vector.
#[inline(always)]
pub(crate) const fn width<S: DecodeSimd>() -> usize {
    S::f32s::LEN
}
