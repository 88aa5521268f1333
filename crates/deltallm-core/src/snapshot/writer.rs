//! Saving.

use std::io::{self, Seek, SeekFrom, Write};

use super::format::{ALIGNMENT, BLOCK, BYTE_ORDER, HEADER, MAGIC, VERSION, table_bytes};
use crate::piece::Piece;

/// Collects what is in caches, to be written as a snapshot.
///
/// Pieces are shared with the caches and not copied, so collecting takes next to no time and memory; the caches may go on while it is
/// written.
///
/// ```
/// use std::io::Cursor;
///
/// use deltallm_core::{SnapshotReader, SnapshotWriter};
///
/// let mut writer = SnapshotWriter::new();
/// writer.number(7);
/// writer.text("a session");
/// let mut file = Cursor::new(Vec::new());
/// writer.write(&mut file)?;
/// let mut reader = SnapshotReader::copying(file.into_inner().into())?;
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

    /// Writes everything, from where `out` stands. Bytes go through a block's worth of memory, in which their checksum is made; the table of
    /// checksums, which comes before them, is written last.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut (impl Write + Seek)) -> io::Result<()> {
        let (start, pieces) = (out.stream_position()?, self.piece_bytes());
        let written = HEADER + self.numbers.len() + table_bytes(pieces);
        let padding = vec![0; written.next_multiple_of(ALIGNMENT) - written];
        out.seek(SeekFrom::Start(start + (written + padding.len()) as u64))?;
        let table = self.write_pieces(out)?;
        let end = out.stream_position()?;
        out.seek(SeekFrom::Start(start))?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&BYTE_ORDER.to_ne_bytes());
        header.extend_from_slice(&(self.numbers.len() as u64).to_le_bytes());
        header.extend_from_slice(&(pieces as u64).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&self.numbers).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&table).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        [&header, &self.numbers, &table, &padding].into_iter().try_for_each(|part| out.write_all(part))?;
        out.seek(SeekFrom::Start(end))?;
        Ok(())
    }

    /// Writes the pieces; a checksum of every block of them.
    fn write_pieces(&self, out: &mut impl Write) -> io::Result<Vec<u8>> {
        let (mut table, mut block) = (Vec::new(), Vec::with_capacity(BLOCK.min(self.piece_bytes())));
        let mut end_block = |block: &mut Vec<u8>| {
            table.extend_from_slice(&crc32fast::hash(block).to_le_bytes());
            out.write_all(block)?;
            block.clear();
            io::Result::Ok(())
        };
        for piece in &self.pieces {
            let mut data = piece.data();
            while !data.is_empty() {
                let (here, rest) = data.split_at((BLOCK - block.len()).min(data.len()));
                block.extend_from_slice(here);
                data = rest;
                if block.len() == BLOCK {
                    end_block(&mut block)?;
                }
            }
        }
        if !block.is_empty() {
            end_block(&mut block)?;
        }
        Ok(table)
    }
}
