//! Arithmetic that needs raw pointers or chosen instructions. Besides memory mapping, this is the only place of this crate with
//! `unsafe` code.

mod arch;
mod byte_products;
mod large_pages;
mod matmul;
mod panel;

pub(crate) use byte_products::{ByteProducts, bytes_of, rows_of};
pub(crate) use large_pages::LargePages;
pub(crate) use matmul::{matmul_transposed, matmul_transposed_here};
pub(crate) use panel::{Line, PANEL, Quad, RowFactors, bits, for_each_task};
