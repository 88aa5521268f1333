//! What both sides know of the format.

/// What a snapshot begins with.
pub(super) const MAGIC: [u8; 8] = *b"DELTAKV\n";

/// The version that is written, and the only one that is read.
pub(super) const VERSION: u32 = 2;

/// Pieces are in the byte order of the machine: a machine with the other one reads another number here.
pub(super) const BYTE_ORDER: u32 = 0x0102_0304;

/// Bytes of the pieces that have a checksum of their own.
pub(super) const BLOCK: usize = 1 << 20;

/// The pieces start at a multiple of this, a page of memory on every machine that matters.
pub(super) const ALIGNMENT: usize = 4096;

/// The header: magic bytes, version, byte order, length of the numbers, length of the pieces, checksum of the numbers, checksum of the
/// table of checksums, and a checksum of all these.
pub(super) const HEADER: usize = 44;

/// Bytes of the table of checksums for so many bytes of pieces.
pub(super) fn table_bytes(pieces: usize) -> usize {
    pieces.div_ceil(BLOCK).saturating_mul(size_of::<u32>())
}
