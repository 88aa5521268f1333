//! Read-only bytes of a model file: mapped, borrowed for ever, or owned.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

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
        // SAFETY: the mapping is private and read-only and is only ever seen as `&[u8]`, for which every bit pattern
        // is valid. What remains is that another process may modify or truncate the file meanwhile; no system call
        // can exclude that, so the caveat is passed on in the documentation. All parsers of this crate check what
        // they index against the slice's length on every access, so changed bytes cannot make them leave the map.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self(Storage::Mapped(map)))
    }
}

impl From<Cow<'static, [u8]>> for Bytes {
    fn from(bytes: Cow<'static, [u8]>) -> Self {
        Self(Storage::Memory(bytes))
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
