//! Arithmetic that needs raw pointers or chosen instructions. Besides memory mapping, this and the kernels of
//! [`ternary`](crate::ternary) and [`quantised`](crate::quantised) are the only places of this crate with `unsafe` code.

mod awake;
mod byte_kernel;
mod half;
mod large_pages;
mod matmul;
mod panel;
mod prefetch;
#[cfg(target_arch = "aarch64")]
mod sdot;
mod silu;

use std::sync::OnceLock;

use deltallm_attn::SimdLevel;

pub(crate) use awake::with_threads_awake;
pub use byte_kernel::ByteKernel;
pub(crate) use byte_kernel::Instructions;
pub(crate) use half::matmul_half;
pub(crate) use large_pages::LargePages;
pub(crate) use matmul::matmul_transposed;
pub(crate) use panel::{Halves, LEAST_WORK, Line, PANEL, Quad, bits, for_each_task};
pub(crate) use prefetch::prefetch_after;
#[cfg(target_arch = "aarch64")]
pub(crate) use sdot::sdot;
pub(crate) use silu::silu_product;

/// The level of this process: the one that `DELTALLM_SIMD` names, or the best.
pub(crate) fn simd_level() -> SimdLevel {
    static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
    *LEVEL.get_or_init(|| SimdLevel::from_env().unwrap_or_else(|_| SimdLevel::best()))
}
