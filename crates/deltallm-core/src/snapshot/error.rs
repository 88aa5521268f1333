//! What can be wrong with a snapshot.

use crate::{error::CoreError, quoted::quoted};

/// Errors of reading a snapshot. Every variant says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The bytes are something else.
    #[error("expected a snapshot of a cache, got something else")]
    NotASnapshot,
    /// It was written by another version of this library, or on a machine with the other byte order.
    #[error("snapshot: expected {what} {expected}, got {got}; make it again")]
    Made {
        /// What differs: `version` or `byte order`.
        what: &'static str,
        /// What this library reads.
        expected: u32,
        /// What stands there.
        got: u32,
    },
    /// There are fewer or more bytes than the header says.
    #[error(
        "snapshot: expected {expected} bytes, got {got}; the file has been cut or something has been added"
    )]
    Length {
        /// Bytes that the header announces.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// Some bytes have changed since they were written.
    #[error("snapshot: the checksum of {part} is {got:08x}, expected {expected:08x}; the file is damaged")]
    Checksum {
        /// Which part: `the header`, `the numbers`, `the table`, or `block` and its number.
        part: String,
        /// The checksum that was written.
        expected: u32,
        /// The checksum of what is there.
        got: u32,
    },
    /// It is of a cache with other settings.
    #[error("snapshot: expected {what} {}, got {}", quoted(expected), quoted(got))]
    Other {
        /// The setting.
        what: &'static str,
        /// What the cache has that is to be loaded.
        expected: String,
        /// What the snapshot is of.
        got: String,
    },
    /// A number that no cache would have written.
    #[error("snapshot: expected {expected}, got {what} {got}")]
    Invalid {
        /// What is wrong.
        what: &'static str,
        /// What it can be.
        expected: &'static str,
        /// What it is.
        got: u64,
    },
    /// A kernel that does not save its cache, or cannot do so now.
    #[error("snapshot: {reason}")]
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// There is no memory for what is in it.
    #[error(transparent)]
    Core(#[from] CoreError),
}
