//! The parts of a decoder layer.

mod add;
mod mlp;
mod rms_norm;
mod rope;

use deltallm_simd::tuning::LEAST_NUMBERS;

pub(crate) use add::add;
pub(crate) use mlp::gated_mlp;
pub(crate) use rms_norm::{rms_norm, rms_norm_in_place};
pub(crate) use rope::{Rope, Turns};

/// Whether so many numbers are enough for the threads of the current rayon pool to share a simple operation.
fn shared(numbers: usize) -> bool {
    numbers >= LEAST_NUMBERS && rayon::current_num_threads() > 1
}
