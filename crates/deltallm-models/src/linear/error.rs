//! Why weights cannot be multiplied with, or read.

/// What does not fit a weight matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinearError {
    /// The input has another number of columns than the weights.
    #[error("x: expected {expected} columns, as the weights have, got {got}")]
    Columns {
        /// Columns of the weights.
        expected: usize,
        /// Columns of the input.
        got: usize,
    },
    /// The bias has another length than there are outputs.
    #[error("bias: expected {expected} numbers, one for each output, got {got}")]
    Bias {
        /// Rows of the weights.
        expected: usize,
        /// Length of the bias.
        got: usize,
    },
    /// There is no such row.
    #[error("row: expected an index below {rows}, got {got}")]
    Row {
        /// Rows of the weights.
        rows: usize,
        /// The index.
        got: usize,
    },
    /// The place for a row has another length.
    #[error("out: expected room for the {expected} weights of a row, got {got}")]
    RowLength {
        /// Columns of the weights.
        expected: usize,
        /// Length of the place.
        got: usize,
    },
}

impl LinearError {
    /// Refuses an input that does not have the columns of the weights.
    pub(super) fn check_columns(expected: usize, got: usize) -> Result<(), Self> {
        if expected == got { Ok(()) } else { Err(Self::Columns { expected, got }) }
    }

    /// Refuses a row that is not there.
    pub(super) fn check_row(rows: usize, got: usize) -> Result<(), Self> {
        if got < rows { Ok(()) } else { Err(Self::Row { rows, got }) }
    }

    /// Refuses a place of another length than a row.
    pub(super) fn check_room(expected: usize, got: usize) -> Result<(), Self> {
        if expected == got { Ok(()) } else { Err(Self::RowLength { expected, got }) }
    }
}
