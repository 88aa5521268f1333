//! Why weights make no quantised layer.

use crate::quant::TensorType;

/// Why a [`QuantisedLinear`](super::QuantisedLinear) could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantisedError {
    /// The type has no blocks of codes with a scale.
    #[error("expected weights of type Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K, got {got}")]
    Type {
        /// The type.
        got: TensorType,
    },
    /// No weights, or rows that are not whole blocks.
    #[error(
        "expected at least one row of whole blocks of {block} columns, got {rows} rows of {columns} columns"
    )]
    Shape {
        /// Columns of a block of the type.
        block: usize,
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
    /// A row has more or fewer bytes than its columns take.
    #[error("row {row}: expected {expected} bytes, got {got}")]
    RowBytes {
        /// Counted from 0.
        row: usize,
        /// Bytes of a row.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A scale or a minimum is NaN or infinite.
    #[error("expected finite scales and minima, got {got} at row {row}, from column {column} on")]
    NonFinite {
        /// Counted from 0.
        row: usize,
        /// The first column that it is for, counted from 0.
        column: usize,
        /// The value.
        got: f32,
    },
    /// The product of two scales is beyond what 16 bits hold.
    #[error("expected products of scales up to 65504, got {got} at row {row}, from column {column} on")]
    ScaleRange {
        /// Counted from 0.
        row: usize,
        /// The first column that it is for, counted from 0.
        column: usize,
        /// The product.
        got: f32,
    },
}
