//! When threads share a simple operation.

use deltallm_simd::tuning::LEAST_NUMBERS;

/// Whether so many numbers are worth sharing between the threads of the current rayon pool.
pub(super) fn worth_sharing(numbers: usize) -> bool {
    numbers >= LEAST_NUMBERS && rayon::current_num_threads() > 1
}
