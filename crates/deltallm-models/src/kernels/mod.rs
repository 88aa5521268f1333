//! Arithmetic that needs raw pointers: the only place of this crate, besides memory mapping, with `unsafe` code.

mod matmul;

pub(crate) use matmul::matmul_transposed;
