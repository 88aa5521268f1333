//! Loading.

use bytes::Bytes;

use super::{
    error::SnapshotError,
    format::{ALIGNMENT, BLOCK, BYTE_ORDER, HEADER, MAGIC, VERSION, table_bytes},
};
use crate::{budget::MemoryBudget, piece::Piece};

/// Reads a snapshot: whoever asks gets what was [written](super::SnapshotWriter), in the same order.
///
/// All checksums are compared before anything is handed out. Memory is taken for what is in the bytes, and for the room that a cache has beside it.
#[derive(Debug)]
pub struct SnapshotReader {
    numbers: Bytes,
    pieces: Bytes,
    lends: bool,
}

impl SnapshotReader {
    /// Reads a snapshot whose pieces are to be copied into memory that is charged. The bytes are not needed afterwards.
    ///
    /// # Errors
    /// [`SnapshotError`] for bytes that are not a whole, undamaged snapshot of this version.
    pub fn copying(bytes: Bytes) -> Result<Self, SnapshotError> {
        Self::new(bytes, false)
    }

    /// Reads a snapshot whose pieces are to be used where they lie: for a mapped file. Caches then hold on to the bytes, and charge nothing
    /// for them; a page that is written is copied first. What has been checked must not change afterwards. (Bytes whose pieces do not start at a
    /// multiple of 8 are copied, and charged.)
    ///
    /// # Errors
    /// As [`copying`](Self::copying).
    pub fn lending(bytes: Bytes) -> Result<Self, SnapshotError> {
        Self::new(bytes, true)
    }

    fn new(bytes: Bytes, lends: bool) -> Result<Self, SnapshotError> {
        let Some(header) = bytes.first_chunk::<HEADER>().filter(|header| header.starts_with(&MAGIC)) else {
            return Err(SnapshotError::NotASnapshot);
        };
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let made = |what, expected, got| match expected == got {
            true => Ok(()),
            false => Err(SnapshotError::Made { what, expected, got }),
        };
        made("version", VERSION, word(8))?;
        made("byte order", BYTE_ORDER, u32::from_ne_bytes(header[12..16].try_into().unwrap_or_default()))?;
        check("the header", &header[..HEADER - 4], word(HEADER - 4))?;
        // Saturating: whatever stands there is compared with the bytes there are.
        let length = |at| usize::try_from(long(at)).unwrap_or(usize::MAX);
        let (numbers, pieces) = (length(16), length(24));
        let (table, got) = (table_bytes(pieces), bytes.len());
        let front = HEADER.saturating_add(numbers).saturating_add(table);
        let front = front.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        let expected = front.saturating_add(pieces);
        if expected != got {
            return Err(SnapshotError::Length { expected: expected as u64, got: got as u64 });
        }
        let (table, numbers, pieces) = (
            bytes.slice(HEADER + numbers..HEADER + numbers + table),
            bytes.slice(HEADER..HEADER + numbers),
            bytes.slice(front..),
        );
        check("the numbers", &numbers, word(32))?;
        check("the table", &table, word(36))?;
        for (number, (block, checksum)) in pieces.chunks(BLOCK).zip(table.chunks_exact(4)).enumerate() {
            let expected = u32::from_le_bytes(checksum.try_into().unwrap_or_default());
            check(&format!("block {number}"), block, expected)?;
        }
        // A mapped file starts at a page; other bytes may start anywhere, and are copied then.
        let aligned = pieces.as_ptr().addr().is_multiple_of(size_of::<u64>());
        Ok(Self { numbers, pieces, lends: lends && aligned })
    }

    fn take(bytes: &mut Bytes, count: usize) -> Result<Bytes, SnapshotError> {
        match bytes.len() {
            there if count > there => {
                Err(SnapshotError::Length { expected: count as u64, got: there as u64 })
            }
            _ => Ok(bytes.split_to(count)),
        }
    }

    /// The next number.
    ///
    /// # Errors
    /// [`SnapshotError::Length`] at the end.
    pub fn number(&mut self) -> Result<u64, SnapshotError> {
        let bytes = Self::take(&mut self.numbers, size_of::<u64>())?;
        Ok(u64::from_le_bytes(bytes[..].try_into().unwrap_or_default()))
    }

    /// The next count, which is `most` at most.
    ///
    /// # Errors
    /// [`SnapshotError::Length`] at the end; [`SnapshotError::Invalid`] for more.
    pub fn count(&mut self, what: &'static str, most: usize) -> Result<usize, SnapshotError> {
        let got = self.number()?;
        match usize::try_from(got) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(SnapshotError::Invalid { what, expected: "a number that fits the others", got }),
        }
    }

    fn items(&mut self, bytes_each: usize) -> Result<Bytes, SnapshotError> {
        let most = self.numbers.len() / bytes_each;
        let bytes = self.count("length", most)? * bytes_each;
        let mut padded = Self::take(&mut self.numbers, bytes.next_multiple_of(size_of::<u64>()))?;
        Ok(padded.split_to(bytes))
    }

    /// The next list of numbers.
    ///
    /// # Errors
    /// [`SnapshotError`] for one that is not there.
    pub fn list(&mut self) -> Result<Vec<u32>, SnapshotError> {
        let bytes = self.items(4)?;
        Ok(bytes.chunks_exact(4).map(|x| u32::from_le_bytes(x.try_into().unwrap_or_default())).collect())
    }

    /// The next row, all of whose numbers must be finite.
    ///
    /// # Errors
    /// [`SnapshotError`] for one that is not there.
    pub fn floats(&mut self) -> Result<Vec<f32>, SnapshotError> {
        let row: Vec<f32> = self.list()?.into_iter().map(f32::from_bits).collect();
        match row.iter().find(|x| !x.is_finite()) {
            None => Ok(row),
            Some(x) => Err(SnapshotError::Invalid {
                what: "the bits",
                expected: "a finite number",
                got: x.to_bits().into(),
            }),
        }
    }

    /// The next text.
    ///
    /// # Errors
    /// [`SnapshotError`] for one that is not there, or not UTF-8.
    pub fn text(&mut self) -> Result<String, SnapshotError> {
        let bytes = self.items(1)?;
        let length = bytes.len() as u64;
        String::from_utf8(bytes.into()).map_err(|_| SnapshotError::Invalid {
            what: "bytes",
            expected: "a text in UTF-8",
            got: length,
        })
    }

    /// Checks that there is room for so many pieces of so many bytes in what is left.
    pub(crate) fn expect_pieces(&self, count: usize, bytes: usize) -> Result<(), SnapshotError> {
        let (expected, got) = (count.saturating_mul(Piece::data_bytes(bytes)), self.pieces.len());
        if expected <= got {
            return Ok(());
        }
        Err(SnapshotError::Length { expected: expected as u64, got: got as u64 })
    }

    /// The next piece, which has room for `bytes`.
    pub(crate) fn piece(&mut self, bytes: usize, budget: &MemoryBudget) -> Result<Piece, SnapshotError> {
        let data = Self::take(&mut self.pieces, Piece::data_bytes(bytes))?;
        if self.lends {
            return Ok(Piece::Lent(data));
        }
        let mut piece = Piece::new(bytes, budget)?;
        piece.data_mut(budget)?.copy_from_slice(&data);
        Ok(piece)
    }

    /// Checks that a setting is the one of the cache that is to be loaded.
    ///
    /// # Errors
    /// [`SnapshotError::Other`] names both.
    pub fn expect<T: PartialEq + std::fmt::Display>(
        &self,
        what: &'static str,
        expected: T,
        got: T,
    ) -> Result<(), SnapshotError> {
        match expected == got {
            true => Ok(()),
            false => Err(SnapshotError::Other { what, expected: expected.to_string(), got: got.to_string() }),
        }
    }

    /// Checks that everything has been read.
    ///
    /// # Errors
    /// [`SnapshotError::Length`] for what is left.
    pub fn end(&self) -> Result<(), SnapshotError> {
        match self.numbers.len() + self.pieces.len() {
            0 => Ok(()),
            left => Err(SnapshotError::Length { expected: 0, got: left as u64 }),
        }
    }
}

fn check(part: &str, data: &[u8], expected: u32) -> Result<(), SnapshotError> {
    match crc32fast::hash(data) {
        got if got == expected => Ok(()),
        got => Err(SnapshotError::Checksum { part: part.to_owned(), expected, got }),
    }
}
