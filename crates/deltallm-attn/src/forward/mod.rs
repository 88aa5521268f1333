//! Calls in other forms than slices of f32: arrays, 16 bits, several sequences, several tokens as decoding attends them.

#[cfg(feature = "ndarray")]
pub(crate) mod arrays;
mod batch;
mod half_precision;
mod one_by_one;

pub use batch::forward_batch;
pub use half_precision::{Half, forward_half};
pub use one_by_one::forward_one_by_one;
