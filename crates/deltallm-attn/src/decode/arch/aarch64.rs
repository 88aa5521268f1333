//! NEON.

use deltallm_simd::fearless_simd::Neon;

use crate::decode::lanes::Lanes;

impl Lanes for Neon {
    const HEADS: usize = 4;
    const REGISTERS: usize = 32;
}
