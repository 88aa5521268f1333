//! Caches as bytes, to be saved and loaded again. The format is described in `docs/formats.md`.
//!
//! Two streams: *numbers* (lengths, settings, short rows), one after the other, and *pieces* (pages and blocks), as they lie in memory. A
//! reader asks for the same things in the same order, and checks each against what it expects: whatever is in a file, it gets an error or
//! a cache that is whole.

mod error;
mod reader;
mod writer;

pub use error::SnapshotError;
pub use reader::SnapshotReader;
pub use writer::SnapshotWriter;

/// What a snapshot begins with.
const MAGIC: [u8; 8] = *b"DELTAKV\n";

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;

/// Pieces are in the byte order of the machine: a machine with the other one reads another number here.
const BYTE_ORDER: u32 = 0x0102_0304;

/// Bytes of the pieces that have a checksum of their own.
const BLOCK: usize = 1 << 20;

/// The pieces start at a multiple of this, a page of memory on every machine that matters.
const ALIGNMENT: usize = 4096;

/// The header: magic bytes, version, byte order, length of the numbers, length of the pieces, checksum of the numbers, checksum of the
/// table of checksums, and a checksum of all these.
const HEADER: usize = 44;

/// Bytes of the table of checksums for so many bytes of pieces.
fn table_bytes(pieces: usize) -> usize {
    pieces.div_ceil(BLOCK).saturating_mul(size_of::<u32>())
}
