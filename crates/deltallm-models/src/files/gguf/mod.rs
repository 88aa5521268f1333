//! A reader for GGUF files, versions 2 and 3, that survives hostile ones.
//!
//! Format: `docs/gguf.md` in the ggml repository. A file is a header (magic, version, number of tensors, number of
//! metadata entries), the metadata, the tensors' descriptions, padding to the alignment, and the tensors' data.

mod cursor;
mod error;
mod split_error;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use cursor::Cursor;
pub use error::GgufError;
pub use split_error::SplitError;
pub use value::{Array, Metadata, Value};

use crate::files::config::Architecture;
use crate::quant::TensorType;

/// The four bytes that every GGUF file starts with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of the tensor data unless `general.alignment` says otherwise.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest page of common systems; more would only serve to overflow sums.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Arrays of arrays occur in no known file; a little room, but no deep recursion.
const MAX_NESTING: usize = 4;
/// An empty key, a value type and a one-byte value.
const LEAST_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// An empty name, a rank, one dimension, a type and an offset.
const LEAST_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// The description of one tensor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its dimensions, one to four, **outermost first** (`[out, in]` for a matrix): the reverse of the file's order.
    pub shape: Vec<usize>,
    /// Its element type.
    pub ty: TensorType,
    /// Its bytes in the file, checked to lie inside and to be as many as shape and type imply.
    pub range: Range<usize>,
}

/// The header of a GGUF file: everything but the tensors' data.
///
/// ```
/// use deltallm_models::gguf::GgufFile;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bytes = std::fs::read("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
/// let file = GgufFile::parse(&bytes)?;
/// println!("{:?}", file.metadata().string("general.architecture")?);
/// for tensor in file.tensors() {
///     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.ty);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct GgufFile {
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Reads the header of a whole file. The data are not read, but `bytes` must hold them.
    ///
    /// Memory use is at most a small multiple of the header's own size, whatever it claims.
    ///
    /// # Errors
    /// [`GgufError`], naming the rule that the file breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        Self::parse_part(bytes, None)
    }

    /// The same for a part of a split model, of which only the first says the architecture.
    pub(crate) fn parse_part(bytes: &[u8], first: Option<&Self>) -> Result<Self, GgufError> {
        let cursor = &mut Cursor::new(bytes);
        let version = read_version(cursor)?;
        // The least size of an entry bounds both counts; the tensors' one is bounded again once it is their turn.
        let tensor_count = cursor.count("tensors", LEAST_TENSOR_BYTES)?;
        let entry_count = cursor.count("metadata entries", LEAST_ENTRY_BYTES)?;
        let metadata = read_metadata(cursor, entry_count)?;
        let alignment = read_alignment(&metadata)?;
        // The number of `I2_S` is another type's in other files.
        let knows_i2_s = is_bitnet(first.map_or(&metadata, |first| &first.metadata));
        let descriptions = read_descriptions(cursor, tensor_count)?;
        let data_start = cursor.position().next_multiple_of(alignment);
        let tensors = descriptions
            .into_iter()
            .map(|description| description.locate(data_start, alignment, bytes.len() as u64, knows_i2_s))
            .collect::<Result<Vec<_>, _>>()?;
        let by_name = index_names(&tensors)?;
        refuse_overlaps(&tensors)?;
        Ok(Self { version, metadata, tensors, by_name })
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }
}

fn is_bitnet(metadata: &Metadata) -> bool {
    matches!(metadata.get("general.architecture"), Some(Value::String(name))
        if Architecture::from_gguf_name(name) == Some(Architecture::BitNet))
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic = cursor.array("magic")?;
    if magic != MAGIC {
        return Err(GgufError::BadMagic { got: magic });
    }
    match cursor.u32("version")? {
        version @ 2..=3 => Ok(version),
        // A big-endian writer stores its small version number the other way round.
        got if (1..=3).contains(&got.swap_bytes()) => Err(GgufError::BigEndian { version: got.swap_bytes() }),
        got => Err(GgufError::UnsupportedVersion { got }),
    }
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<Metadata, GgufError> {
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string("metadata key")?;
        let type_id = cursor.u32("metadata value type")?;
        let value = read_value(cursor, key, type_id)?;
        if entries.insert(key.to_owned(), value).is_some() {
            return Err(GgufError::DuplicateKey { key: key.to_owned() });
        }
    }
    Ok(Metadata(entries))
}

fn read_value(cursor: &mut Cursor<'_>, key: &str, type_id: u32) -> Result<Value, GgufError> {
    const WHAT: &str = "metadata value";
    Ok(match type_id {
        0 => Value::U8(u8::from_le_bytes(cursor.array(WHAT)?)),
        1 => Value::I8(i8::from_le_bytes(cursor.array(WHAT)?)),
        2 => Value::U16(u16::from_le_bytes(cursor.array(WHAT)?)),
        3 => Value::I16(i16::from_le_bytes(cursor.array(WHAT)?)),
        4 => Value::U32(u32::from_le_bytes(cursor.array(WHAT)?)),
        5 => Value::I32(i32::from_le_bytes(cursor.array(WHAT)?)),
        6 => Value::F32(f32::from_le_bytes(cursor.array(WHAT)?)),
        7 => Value::Bool(read_bool(key, cursor.array(WHAT)?)?),
        8 => Value::String(cursor.string(WHAT)?.to_owned()),
        9 => Value::Array(read_array(cursor, key, 1)?),
        10 => Value::U64(u64::from_le_bytes(cursor.array(WHAT)?)),
        11 => Value::I64(i64::from_le_bytes(cursor.array(WHAT)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(WHAT)?)),
        got => return Err(GgufError::ValueType { key: key.to_owned(), got }),
    })
}

/// `depth` counts the arrays around and including this one.
fn read_array(cursor: &mut Cursor<'_>, key: &str, depth: usize) -> Result<Array, GgufError> {
    if depth > MAX_NESTING {
        return Err(GgufError::Nesting { key: key.to_owned(), most: MAX_NESTING });
    }
    let type_id = cursor.u32("array element type")?;
    Ok(match type_id {
        0 => Array::U8(read_numbers(cursor, u8::from_le_bytes)?),
        1 => Array::I8(read_numbers(cursor, i8::from_le_bytes)?),
        2 => Array::U16(read_numbers(cursor, u16::from_le_bytes)?),
        3 => Array::I16(read_numbers(cursor, i16::from_le_bytes)?),
        4 => Array::U32(read_numbers(cursor, u32::from_le_bytes)?),
        5 => Array::I32(read_numbers(cursor, i32::from_le_bytes)?),
        6 => Array::F32(read_numbers(cursor, f32::from_le_bytes)?),
        7 => {
            let bytes = read_numbers(cursor, |byte: [u8; 1]| byte)?;
            Array::Bool(bytes.into_iter().map(|byte| read_bool(key, byte)).collect::<Result<_, _>>()?)
        }
        8 => {
            // A string takes at least its length field.
            let count = cursor.count("array elements", 8)?;
            Array::String(
                (0..count).map(|_| Ok(cursor.string("string in an array")?.to_owned())).collect::<Result<
                    _,
                    GgufError,
                >>(
                )?,
            )
        }
        9 => {
            // An array takes at least its element type and length.
            let count = cursor.count("array elements", 12)?;
            Array::Array((0..count).map(|_| read_array(cursor, key, depth + 1)).collect::<Result<_, _>>()?)
        }
        10 => Array::U64(read_numbers(cursor, u64::from_le_bytes)?),
        11 => Array::I64(read_numbers(cursor, i64::from_le_bytes)?),
        12 => Array::F64(read_numbers(cursor, f64::from_le_bytes)?),
        got => return Err(GgufError::ValueType { key: key.to_owned(), got }),
    })
}

fn read_numbers<T, const N: usize>(
    cursor: &mut Cursor<'_>,
    convert: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, GgufError> {
    let count = cursor.count("array elements", N as u64)?;
    // `count * N` is at most the size of the rest.
    let bytes = cursor.take("array", (count * N) as u64)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|&bytes| convert(bytes)).collect())
}

fn read_bool(key: &str, [byte]: [u8; 1]) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        got => Err(GgufError::Bool { key: key.to_owned(), got }),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let got = metadata.integer("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if got.is_power_of_two() && got <= MAX_ALIGNMENT {
        Ok(got)
    } else {
        Err(GgufError::Alignment { most: MAX_ALIGNMENT, got })
    }
}

/// A tensor's description before its place in the file is known.
struct Description<'a> {
    name: &'a str,
    /// Innermost dimension first, as in the file.
    dims: Vec<u64>,
    type_id: u32,
    /// Relative to the data section.
    offset: u64,
}

fn read_descriptions<'a>(cursor: &mut Cursor<'a>, count: usize) -> Result<Vec<Description<'a>>, GgufError> {
    // Not reserved up front: the metadata may have used up the bytes that `count` was checked against.
    let mut descriptions = Vec::new();
    for _ in 0..count {
        let name = cursor.string("tensor name")?;
        let rank = cursor.u32("number of dimensions")?;
        if !(1..=4).contains(&rank) {
            return Err(GgufError::Rank { tensor: name.to_owned(), got: rank });
        }
        let dims = (0..rank).map(|_| cursor.u64("dimension")).collect::<Result<_, _>>()?;
        let type_id = cursor.u32("tensor type")?;
        let offset = cursor.u64("tensor offset")?;
        descriptions.push(Description { name, dims, type_id, offset });
    }
    Ok(descriptions)
}

impl Description<'_> {
    /// Checks the shape and the place of the data against the size of the file.
    fn locate(
        self,
        data_start: u64,
        alignment: u64,
        file_size: u64,
        knows_i2_s: bool,
    ) -> Result<TensorInfo, GgufError> {
        let tensor = self.name.to_owned();
        let known = TensorType::from_id(self.type_id).filter(|&ty| knows_i2_s || ty != TensorType::I2_S);
        let Some(ty) = known else {
            return Err(GgufError::TensorType { tensor, got: self.type_id });
        };
        if self.dims.contains(&0) {
            return Err(GgufError::ZeroDimension { tensor, dims: self.dims });
        }
        let Some(elements) = self.dims.iter().try_fold(1, |product: u64, &dim| product.checked_mul(dim))
        else {
            return Err(GgufError::ShapeOverflow { tensor, dims: self.dims });
        };
        if !self.dims[0].is_multiple_of(ty.block_elements() as u64) {
            return Err(GgufError::PartialBlock { tensor, block: ty.block_elements(), got: self.dims[0] });
        }
        let Some(bytes) = ty.bytes_for(elements) else {
            return Err(GgufError::ShapeOverflow { tensor, dims: self.dims });
        };
        if !self.offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { tensor, alignment, got: self.offset });
        }
        let available = file_size.saturating_sub(data_start);
        if self.offset.checked_add(bytes).is_none_or(|end| end > available) {
            return Err(GgufError::TensorPastEnd { tensor, offset: self.offset, bytes, available });
        }
        // Inside the file, hence inside `usize`; and so are the dimensions, whose product is the element count.
        let start = (data_start + self.offset) as usize;
        let shape = self.dims.iter().rev().map(|&dim| dim as usize).collect();
        Ok(TensorInfo { name: tensor, shape, ty, range: start..start + bytes as usize })
    }
}

fn refuse_overlaps(tensors: &[TensorInfo]) -> Result<(), GgufError> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.range.start);
    for pair in sorted.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            return Err(GgufError::Overlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    Ok(())
}

fn index_names(tensors: &[TensorInfo]) -> Result<HashMap<String, usize>, GgufError> {
    let mut by_name = HashMap::with_capacity(tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        if by_name.insert(tensor.name.clone(), i).is_some() {
            return Err(GgufError::DuplicateTensor { tensor: tensor.name.clone() });
        }
    }
    Ok(by_name)
}
