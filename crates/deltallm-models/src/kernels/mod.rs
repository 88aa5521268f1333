//! Arithmetic that needs raw pointers or chosen instructions. Besides memory mapping, this and the kernels of
//! [`ternary`](crate::ternary) are the only places of this crate with `unsafe` code.

use std::sync::OnceLock;

use deltallm_attn::SimdLevel;

mod half;
mod matmul;
mod prefetch;
mod silu;

pub(crate) use half::matmul_half;
pub(crate) use matmul::matmul_transposed;
pub(crate) use prefetch::prefetch_after;
pub(crate) use silu::silu_product;

/// The level of this process: the one that `DELTALLM_SIMD` names, or the best.
pub(crate) fn simd_level() -> SimdLevel {
    static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
    *LEVEL.get_or_init(|| SimdLevel::from_env().unwrap_or_else(|_| SimdLevel::best()))
}
