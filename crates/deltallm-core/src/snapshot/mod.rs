//! Caches as bytes, to be saved and loaded again. The format is described in `docs/formats.md`.
//!
//! Two streams: *numbers* (lengths, settings, short rows), one after the other, and *pieces* (pages and blocks), as they lie in memory. A
//! reader asks for the same things in the same order, and checks each against what it expects: whatever is in a file, it gets an error or
//! a cache that is whole.

mod error;
mod file;
mod format;
mod reader;
mod writer;

pub use error::SnapshotError;
pub use file::write_file;
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;
