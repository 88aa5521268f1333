//! Why weights make no ternary layer.

/// Why a [`TernaryLinear`](super::TernaryLinear) could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TernaryError {
    /// No weights, or too many columns for sums of 32 bits.
    #[error("expected at least one row and 1 to {max_columns} columns, got {rows} rows of {columns} columns")]
    Shape {
        /// The most columns.
        max_columns: usize,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
    },
    /// The machine does not have the memory.
    #[error("expected a matrix that fits in memory, got {rows} rows of {columns} columns")]
    Memory {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
    },
    /// The scale is NaN or infinite.
    #[error("expected a finite scale of the ternary weights, got {got}")]
    Scale {
        /// The scale.
        got: f32,
    },
    /// A weight is not ternary.
    #[error("expected weights -1, 0 or 1, got {got} at row {row}, column {column}")]
    Weight {
        /// Counted from 0.
        row: usize,
        /// Counted from 0.
        column: usize,
        /// The weight.
        got: i8,
    },
}
