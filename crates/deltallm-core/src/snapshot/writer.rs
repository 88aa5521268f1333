//! Saving.

use std::io::{self, Write};

use crc32fast::Hasher;

use super::format::{ALIGNMENT, BLOCK, BYTE_ORDER, HEADER, MAGIC, VERSION, table_bytes};
use crate::piece::Piece;

/// Collects what is in caches, to be written as a snapshot.
///
/// Pieces are shared with the caches and not copied, so collecting takes next to no time and memory; the caches may go on while it is
/// written.
///
/// ```
/// use deltallm_core::{SnapshotReader, SnapshotWriter};
///
/// let mut writer = SnapshotWriter::new();
/// writer.number(7);
/// writer.text("a session");
/// let mut bytes = Vec::new();
/// writer.write(&mut bytes)?;
/// let mut reader = SnapshotReader::copying(bytes.into())?;
/// assert_eq!((reader.number()?, reader.text()?), (7, "a session".to_owned()));
/// reader.end()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct SnapshotWriter {
    numbers: Vec<u8>,
    pieces: Vec<Piece>,
}

impl SnapshotWriter {
    /// The version of the format.
    pub const VERSION: u32 = VERSION;

    /// Nothing so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a number.
    pub fn number(&mut self, number: u64) {
        self.numbers.extend_from_slice(&number.to_le_bytes());
    }

    /// Appends a count.
    pub fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    /// Appends a list of numbers, its length first.
    pub fn list(&mut self, numbers: &[u32]) {
        self.count(numbers.len());
        numbers.iter().for_each(|x| self.numbers.extend_from_slice(&x.to_le_bytes()));
        self.pad();
    }

    /// Appends a row, its length first.
    pub fn floats(&mut self, row: &[f32]) {
        self.count(row.len());
        row.iter().for_each(|x| self.numbers.extend_from_slice(&x.to_le_bytes()));
        self.pad();
    }

    /// Appends a text, its length in bytes first.
    pub fn text(&mut self, text: &str) {
        self.count(text.len());
        self.numbers.extend_from_slice(text.as_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.numbers.resize(self.numbers.len().next_multiple_of(size_of::<u64>()), 0);
    }

    pub(crate) fn piece(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }

    /// The numbers so far, as they will be written: of empty caches, all by which these can be told from others.
    pub fn numbers(&self) -> &[u8] {
        &self.numbers
    }

    /// Bytes that will be written.
    pub fn bytes(&self) -> u64 {
        let pieces = self.piece_bytes();
        ((HEADER + self.numbers.len() + table_bytes(pieces)).next_multiple_of(ALIGNMENT) + pieces) as u64
    }

    fn piece_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.data().len()).sum()
    }

    /// Writes everything. Whoever writes into a file gives it its name once it is whole.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (pieces, table) = (self.piece_bytes(), self.checksums());
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
        header.extend_from_slice(&(self.numbers.len() as u64).to_le_bytes());
        header.extend_from_slice(&(pieces as u64).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&self.numbers).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        let written = header.len() + self.numbers.len() + table.len();
        for part in
            [&header[..], &self.numbers, &table, &vec![0; written.next_multiple_of(ALIGNMENT) - written]]
        {
            out.write_all(part)?;
        }
        self.pieces.iter().try_for_each(|piece| out.write_all(piece.data()))
    }

    /// A checksum of every block of the pieces.
    fn checksums(&self) -> Vec<u8> {
        let (mut table, mut hasher, mut room) = (Vec::new(), Hasher::new(), BLOCK);
        for piece in &self.pieces {
            let mut data = piece.data();
            while !data.is_empty() {
                let (here, rest) = data.split_at(room.min(data.len()));
                hasher.update(here);
                (data, room) = (rest, room - here.len());
                if room == 0 {
                    table.extend_from_slice(&std::mem::take(&mut hasher).finalize().to_le_bytes());
                    room = BLOCK;
                }
            }
        }
        if room < BLOCK {
            table.extend_from_slice(&hasher.finalize().to_le_bytes());
        }
        table
    }
}
