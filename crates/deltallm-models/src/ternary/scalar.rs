//! What every kernel computes, in plain loops.

use super::layout::{COLUMNS, Line, PANEL};

/// `sums[row] = sum over columns of code * activation`, for the rows of a panel.
pub(super) fn vector(panel: &[Line], activations: &[i8], sums: &mut [i32; PANEL]) {
    sums.fill(0);
    for (line, activations) in panel.iter().zip(activations.chunks_exact(COLUMNS)) {
        for (bytes, sum) in line.0.chunks_exact(4).zip(sums.iter_mut()) {
            for (i, activations) in activations.chunks_exact(4).enumerate() {
                for (byte, activation) in bytes.iter().zip(activations) {
                    *sum += i32::from((byte >> (2 * i)) & 3) * i32::from(*activation);
                }
            }
        }
    }
}
