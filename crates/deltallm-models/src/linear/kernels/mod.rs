//! What the forms of weights share: how packed weights lie in memory ([`panel`], [`large_pages`]), and how they are multiplied
//! ([`byte_products`] for packed weights, with an implementation for each instruction set in `arch`; [`matmul`] for `f32`).
//!
//! Besides `files/mmap.rs`, this is the only place of this crate with `unsafe` code.

mod arch;
mod byte_products;
mod large_pages;
mod matmul;
mod panel;

pub(crate) use byte_products::{ByteProducts, bytes_of, rows_of};
pub(crate) use large_pages::LargePages;
pub(crate) use matmul::{matmul_transposed, matmul_transposed_here};
pub(crate) use panel::{Line, PANEL, Quad, RowFactors, bits, for_each_task, prefetch_outputs};
