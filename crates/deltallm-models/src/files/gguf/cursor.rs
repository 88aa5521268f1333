//! A bounds-checked little-endian reader over the bytes of a file.

use super::GgufError;

/// Every read names what it reads, and nothing is allocated before its size has been checked against the rest.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    pub(super) fn take(&mut self, what: &'static str, length: u64) -> Result<&'a [u8], GgufError> {
        let rest = self.rest();
        let slice = usize::try_from(length).ok().and_then(|length| rest.get(..length)).ok_or(
            GgufError::Truncated {
                what,
                offset: self.position(),
                expected: length,
                remaining: rest.len() as u64,
            },
        )?;
        self.position += slice.len();
        Ok(slice)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(what, N as u64)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of items, refused if the rest of the file could not hold as many of `least` bytes each.
    pub(super) fn count(&mut self, what: &'static str, least: u64) -> Result<usize, GgufError> {
        let got = self.u64(what)?;
        let most = self.rest().len() as u64 / least;
        if got > most {
            return Err(GgufError::Count { what, most, got });
        }
        // No more than the slice's length, which fits.
        Ok(got as usize)
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        let offset = self.position();
        let bytes = self.take(what, length)?;
        std::str::from_utf8(bytes).map_err(|error| GgufError::NotUtf8 {
            what,
            offset,
            valid: error.valid_up_to(),
        })
    }
}
