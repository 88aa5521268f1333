//! NEON.

use deltallm_simd::fearless_simd::Neon;

use crate::decode::decode_simd::DecodeSimd;

impl DecodeSimd for Neon {
    const HEADS: usize = 4;
    const REGISTERS: usize = 32;
}
