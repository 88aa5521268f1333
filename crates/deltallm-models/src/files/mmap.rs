//! Read-only bytes of a model file: mapped, borrowed for ever, or owned.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::ModelError;

/// The bytes of a model file; dereferences to `[u8]`.
///
/// A mapped file must not be changed or truncated while it is in use: see [`Bytes::map`].
#[derive(Debug)]
pub struct Bytes(Storage);

#[derive(Debug)]
enum Storage {
    Mapped(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    /// Maps a file into memory, so that only the pages that are read take memory and several processes share them.
    ///
    /// Changing the file while it is mapped changes the weights under the reader, and truncating it makes the next
    /// read of the lost pages end the process (`SIGBUS` on Unix): every memory-mapping engine shares this caveat.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the file cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { file: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only and is only ever seen as `&[u8]`, for which every bit pattern
        // is valid. What remains is that another process may modify or truncate the file meanwhile; no system call
        // can exclude that, so the caveat is passed on in the documentation. All parsers of this crate check what
        // they index against the slice's length on every access, so changed bytes cannot make them leave the map.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self(Storage::Mapped(map)))
    }

    /// Says that `part`, some of these bytes, will not be read soon: a mapped file's pages no longer count as memory of this
    /// process then. Reading them again brings them back. Does nothing for other bytes.
    pub(crate) fn release(&self, part: &[u8]) {
        #[cfg(unix)]
        if let Storage::Mapped(map) = &self.0
            && let Some(offset) = part.as_ptr().addr().checked_sub(map.as_ptr().addr())
            && offset + part.len() <= map.len()
        {
            // SAFETY: nothing can have written to the mapping, which is read-only, so what the pages are filled with when they are
            // read again is what they hold now: the file. That it may have been changed meanwhile is the caveat of `map`.
            #[allow(unsafe_code)]
            let advised =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, part.len()) };
            // Advice that is not taken costs memory, no more.
            drop(advised);
        }
        let _ = part;
    }
}

impl From<Cow<'static, [u8]>> for Bytes {
    fn from(bytes: Cow<'static, [u8]>) -> Self {
        Self(Storage::Memory(bytes))
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Storage::Mapped(map) => map,
            Storage::Memory(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_bytes_read_as_before() {
        let path = std::env::temp_dir().join(format!("deltallm-release-{}", std::process::id()));
        let written: Vec<u8> = (0..100_000_u32).map(|i| (i ^ (i >> 8)) as u8).collect();
        std::fs::write(&path, &written).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        assert!(*bytes == *written);
        bytes.release(&bytes[10_000..90_000]);
        bytes.release(&bytes);
        bytes.release(&bytes[..0]);
        bytes.release(&written); // not of this file
        assert!(*bytes == *written);
        std::fs::remove_file(path).unwrap();
    }
}
