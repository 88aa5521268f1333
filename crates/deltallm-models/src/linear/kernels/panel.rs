//! What packed weights have in common: panels of 16 rows, lines of 64 bytes, and how a product is split into tasks.

use deltallm_simd::{prefetch::prefetch, tuning::LEAST_WORK};
use half::f16;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::large_pages::Plain;

/// Rows of a panel.
pub(crate) const PANEL: usize = 16;

/// The codes of 16 rows: a cache line, and the widest vector. Byte `4 r + b` belongs to row `r`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

impl Line {
    pub(crate) const ZERO: Self = Self([0; 64]);
}

/// A number for each row of a panel.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(32))]
pub(crate) struct RowFactors(pub(crate) [f16; PANEL]);

// SAFETY: 64 bytes, which are `ZERO` where all are zero; aligned to 64 bytes, a cache line; no `Drop`.
#[allow(unsafe_code, reason = "promises about types")]
unsafe impl Plain for Line {
    const ZERO: Self = Self::ZERO;
}

// SAFETY: 16-bit floats, of which all bits zero are 0.0; aligned to 32 bytes, half a cache line; no `Drop`.
#[allow(unsafe_code, reason = "promises about types")]
unsafe impl Plain for RowFactors {
    const ZERO: Self = Self([f16::ZERO; PANEL]);
}

/// The activations of four columns.
pub(crate) type Quad = [i8; 4];

/// The bits of a quad as one number, to be broadcast.
#[inline(always)]
pub(crate) fn bits(quad: Quad) -> i32 {
    i32::from_ne_bytes(quad.map(i8::cast_unsigned))
}

/// Asks for outputs before their sums are made. Rows of outputs are far apart, and a store to each would wait for its line: a sixth of
/// the time of a prompt (Qwen2.5 1.5B; Xeon, 29 November 2026).
#[inline(always)]
pub(crate) fn prefetch_outputs(y: &ArrayView2<f32>) {
    for line in y.outer_iter().flat_map(|row| row.to_slice()).flat_map(|row| row.chunks(PANEL)) {
        prefetch(line.as_ptr().cast());
    }
}

/// Hands every `width` columns of `y` to `task`, with their number and what the thread's last task left behind, on the
/// current rayon pool or, where there is nothing to be gained, on this thread. `work` is the multiplications of `width`
/// columns.
pub(crate) fn for_each_task<S: Default>(
    mut y: ArrayViewMut2<f32>,
    width: usize,
    work: usize,
    task: impl Fn(&mut S, (usize, ArrayViewMut2<f32>)) + Sync + Send,
) {
    let total = work.saturating_mul(y.ncols()) / width;
    let tasks = y.axis_chunks_iter_mut(Axis(1), width);
    if rayon::current_num_threads() == 1 || total < 2 * LEAST_WORK {
        let mut scratch = S::default();
        tasks.enumerate().for_each(|y| task(&mut scratch, y));
    } else {
        let tasks = tasks.into_par_iter().enumerate().with_min_len(LEAST_WORK.div_ceil(work.max(1)));
        tasks.for_each_init(S::default, task);
    }
}
