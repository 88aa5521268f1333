//! Arithmetic that needs raw pointers or chosen instructions. Besides memory mapping, this and the kernels of
//! [`ternary`](crate::ternary) and [`quantised`](crate::quantised) are the only places of this crate with `unsafe` code.

mod byte_kernel;
mod half;
mod matmul;
mod panel;
mod prefetch;
mod silu;

pub use byte_kernel::ByteKernel;
pub(crate) use byte_kernel::Instructions;
pub(crate) use half::matmul_half;
pub(crate) use matmul::matmul_transposed;
pub(crate) use panel::{LEAST_WORK, Line, PANEL, Quad, bits, for_each_task};
pub(crate) use prefetch::prefetch_after;
pub(crate) use silu::silu_times;
