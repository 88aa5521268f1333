//! Arithmetic that needs raw pointers or chosen instructions. Besides memory mapping, this and the kernels of
//! [`ternary`](crate::ternary) are the only places of this crate with `unsafe` code.

mod half;
mod matmul;
mod prefetch;

pub(crate) use half::matmul_half;
pub(crate) use matmul::matmul_transposed;
pub(crate) use prefetch::prefetch_after;
