//! The errors of the GGUF reader.

use deltallm_core::internal::quoted;

/// Which rule of the GGUF format a file breaks.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file does not start with `GGUF`.
    #[error("expected a GGUF file (47 47 55 46), got one that starts with {got:02x?}")]
    BadMagic {
        /// The first four bytes.
        got: [u8; 4],
    },
    /// The file is in big-endian byte order.
    #[error("expected a little-endian GGUF file, got a big-endian one (version {version})")]
    BigEndian {
        /// Its version.
        version: u32,
    },
    /// The file's version is not 2 or 3.
    #[error("expected GGUF version 2 or 3, got {got}")]
    UnsupportedVersion {
        /// Its version.
        got: u32,
    },
    /// Something is longer than what is left of the file.
    #[error("{what} at byte {offset}: expected {expected} bytes, got {remaining} to the end of the file")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// The bytes it takes.
        expected: u64,
        /// The bytes from there to the end.
        remaining: u64,
    },
    /// More items are announced than the rest of the file could hold.
    #[error("number of {what}: expected at most {most} in what is left of the file, got {got}")]
    Count {
        /// The items.
        what: &'static str,
        /// How many could fit.
        most: u64,
        /// How many are announced.
        got: u64,
    },
    /// A name or string is not UTF-8.
    #[error("{what} at byte {offset}: expected UTF-8, got an invalid sequence {valid} bytes into it")]
    NotUtf8 {
        /// What was being read.
        what: &'static str,
        /// Where the string starts.
        offset: u64,
        /// Its valid bytes.
        valid: usize,
    },
    /// The type number of a metadata value or array element means nothing.
    #[error("metadata `{key}`: expected a value type of 0 to 12, got {got}", key = quoted(key))]
    ValueType {
        /// The key.
        key: String,
        /// The number.
        got: u32,
    },
    /// A Boolean is neither 0 nor 1.
    #[error("metadata `{key}`: expected a Boolean of 0 or 1, got {got}", key = quoted(key))]
    Bool {
        /// The key.
        key: String,
        /// The byte.
        got: u8,
    },
    /// Arrays are nested deeper than any real file has them.
    #[error("metadata `{key}`: expected arrays nested at most {most} deep", key = quoted(key))]
    Nesting {
        /// The key.
        key: String,
        /// The deepest nesting that is read.
        most: usize,
    },
    /// Two metadata entries have one key.
    #[error("metadata `{key}`: expected one entry, got two", key = quoted(key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A metadata entry that is needed is missing.
    #[error("metadata `{key}` is missing", key = quoted(key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata entry of the tokenizer says something that this crate does not know, and that may change what texts become.
    #[error("metadata `{key}`: expected keys of tokenizers that are known, or no such key, got {got}", key = quoted(key), got = quoted(got))]
    UnknownTokenizerKey {
        /// The key.
        key: String,
        /// Its value, or what kind of value it is.
        got: String,
    },
    /// A metadata entry has another type than its key calls for.
    #[error("metadata `{key}`: expected {expected}, got {got}", key = quoted(key), got = quoted(got))]
    WrongType {
        /// The key.
        key: String,
        /// The type that its key calls for.
        expected: &'static str,
        /// Its type.
        got: String,
    },
    /// `general.alignment` is not usable.
    #[error("metadata `general.alignment`: expected a power of two up to {most}, got {got}")]
    Alignment {
        /// The largest that is read.
        most: u64,
        /// The value.
        got: u64,
    },
    /// Two tensors have one name.
    #[error("tensor `{tensor}`: expected one tensor of that name, got two", tensor = quoted(tensor))]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor has no or too many dimensions.
    #[error("tensor `{tensor}`: expected 1 to 4 dimensions, got {got}", tensor = quoted(tensor))]
    Rank {
        /// The name.
        tensor: String,
        /// Its number of dimensions.
        got: u32,
    },
    /// A dimension is zero.
    #[error("tensor `{tensor}`: expected dimensions of at least 1, got {dims:?}", tensor = quoted(tensor))]
    ZeroDimension {
        /// The name.
        tensor: String,
        /// Its dimensions, innermost first.
        dims: Vec<u64>,
    },
    /// The number of elements or bytes does not fit 64 bits.
    #[error("tensor `{tensor}`: expected a size that fits 64 bits, got dimensions {dims:?}", tensor = quoted(tensor))]
    ShapeOverflow {
        /// The name.
        tensor: String,
        /// Its dimensions, innermost first.
        dims: Vec<u64>,
    },
    /// The tensor's element type is unknown or not supported.
    #[error("tensor `{tensor}`: expected an element type that can be read ({}), got type {got}",
        type_names(), tensor = quoted(tensor))]
    TensorType {
        /// The name.
        tensor: String,
        /// The `ggml_type` number.
        got: u32,
    },
    /// Rows are no whole number of blocks.
    #[error("tensor `{tensor}`: expected rows of a multiple of {block} elements, got {got}", tensor = quoted(tensor))]
    PartialBlock {
        /// The name.
        tensor: String,
        /// Elements per block of its type.
        block: usize,
        /// Elements per row.
        got: u64,
    },
    /// A tensor's offset is not aligned.
    #[error("tensor `{tensor}`: expected an offset that is a multiple of {alignment}, got {got}", tensor = quoted(tensor))]
    Misaligned {
        /// The name.
        tensor: String,
        /// The file's alignment.
        alignment: u64,
        /// The offset, relative to the data section.
        got: u64,
    },
    /// A tensor's data reaches past the end of the file.
    #[error("tensor `{tensor}`: expected {bytes} bytes at offset {offset} of the data, got {available} bytes of data", tensor = quoted(tensor))]
    TensorPastEnd {
        /// The name.
        tensor: String,
        /// Its offset, relative to the data section.
        offset: u64,
        /// Its size in bytes.
        bytes: u64,
        /// The size of the data section.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}`: expected separate data, got overlapping ranges", first = quoted(first), second = quoted(second))]
    Overlap {
        /// The tensor that starts first.
        first: String,
        /// The other.
        second: String,
    },
}

fn type_names() -> String {
    crate::quant::TensorType::ALL.map(|ty| ty.name()).join(", ")
}
