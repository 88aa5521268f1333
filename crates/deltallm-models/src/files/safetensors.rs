//! Model directories as published on model hubs: `config.json` and one or several safetensors files.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use ::safetensors::{Dtype, SafeTensorError, SafeTensors};
use deltallm_core::internal::message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::files::json::{self, ReadError, UniqueKeys};
use crate::quant::TensorType;
use crate::{Bytes, ModelError};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Published ones have at most some ten kilobytes. As values they take many times their size.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The indices of models with thousands of tensors have about a megabyte.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// A model directory: the parsed `config.json` and the mapped tensor files.
#[derive(Debug)]
pub struct SafetensorsModel {
    directory: PathBuf,
    config: Value,
    shards: Vec<Bytes>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// File name by tensor name.
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsModel {
    /// Says that a tensor's bytes will not be read soon; see [`Bytes::release`].
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.shards.iter().for_each(|shard| shard.release(bytes));
    }

    /// Opens a directory with `config.json` and either `model.safetensors` or the shards that
    /// `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// [`ModelError`], naming the file.
    pub fn open_directory(directory: &Path) -> Result<Self, ModelError> {
        if directory.join(SINGLE).is_file() {
            return Self::open_file(&directory.join(SINGLE));
        }
        let path = directory.join(INDEX);
        if !path.is_file() {
            return Err(ModelError::IncompleteDirectory { file: directory.to_owned(), expected: SINGLE });
        }
        let mut model = Self::without_tensors(directory)?;
        let index: Index = read_json(&path, MAX_INDEX_BYTES)?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in names {
            if !is_plain_name(name) {
                return Err(ModelError::ShardName { file: path, got: name.clone() });
            }
            let shard = directory.join(name);
            model.add_shard(&shard, |tensor| index.weight_map.get(tensor) == Some(name))?;
        }
        // A tensor that the index promises may still be absent from its shard.
        match index.weight_map.keys().find(|&tensor| !model.tensors.contains_key(tensor)) {
            Some(tensor) => {
                Err(ModelError::MissingTensor { file: directory.to_owned(), tensor: tensor.clone() })
            }
            None => Ok(model),
        }
    }

    /// Opens one safetensors file whose directory holds the `config.json`.
    ///
    /// # Errors
    /// [`ModelError`], naming the file.
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut model = Self::without_tensors(directory)?;
        model.add_shard(path, |_| true)?;
        Ok(model)
    }

    /// The directory, where tokenizer files lie too.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The parsed `config.json`.
    pub(crate) fn config(&self) -> &Value {
        &self.config
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// Name, element type and number of bytes of every tensor, in no particular order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, String, usize)> {
        self.tensors.iter().map(|(name, entry)| (&**name, entry.dtype.to_string(), entry.range.len()))
    }

    /// Element type, shape (outermost dimension first) and bytes of a tensor.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], or [`ModelError::ElementType`] for other types than F32, F16 and BF16.
    pub fn tensor(&self, name: &str) -> Result<(TensorType, &[usize], &[u8]), ModelError> {
        let entry = self.entry(name)?;
        let ty = match entry.dtype {
            Dtype::F32 => TensorType::F32,
            Dtype::F16 => TensorType::F16,
            Dtype::BF16 => TensorType::BF16,
            _ => return Err(self.element_type(name, "elements of type F32, F16 or BF16", entry)),
        };
        Ok((ty, &entry.shape, self.bytes(entry)))
    }

    /// Shape and bytes of a tensor of packed numbers.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], or [`ModelError::ElementType`] for other types than U8.
    pub fn packed(&self, name: &str) -> Result<(&[usize], &[u8]), ModelError> {
        let entry = self.entry(name)?;
        if entry.dtype != Dtype::U8 {
            return Err(self.element_type(name, "packed elements of type U8", entry));
        }
        Ok((&entry.shape, self.bytes(entry)))
    }

    fn entry(&self, name: &str) -> Result<&Entry, ModelError> {
        let missing = || ModelError::MissingTensor { file: self.directory.clone(), tensor: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        self.shards[entry.shard].get(entry.range.clone()).unwrap_or_default()
    }

    fn element_type(&self, name: &str, expected: &'static str, entry: &Entry) -> ModelError {
        let (file, tensor, got) = (self.directory.clone(), name.to_owned(), entry.dtype.to_string());
        ModelError::ElementType { file, tensor, expected, got }
    }

    fn without_tensors(directory: &Path) -> Result<Self, ModelError> {
        let path = directory.join(CONFIG);
        if !path.is_file() {
            return Err(ModelError::IncompleteDirectory { file: directory.to_owned(), expected: CONFIG });
        }
        let config = read_json(&path, MAX_CONFIG_BYTES)?;
        Ok(Self { directory: directory.to_owned(), config, shards: Vec::new(), tensors: HashMap::new() })
    }

    /// Maps a file and takes up those of its tensors that are `wanted`.
    fn add_shard(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let bytes = Bytes::map(path)?;
        // Checks the header: sizes, overlaps, gaps and that the tensors fill the file exactly.
        let error = |source: SafeTensorError| ModelError::Safetensors {
            file: path.to_owned(),
            source: source.into(),
        };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(error)?;
        let data = 8 + header;
        // Of two tensors with one name it would take either.
        serde_json::from_slice::<UniqueKeys>(bytes.get(8..data).unwrap_or_default())
            .map_err(|source| error(SafeTensorError::InvalidHeaderDeserialization(source)))?;
        for (name, info) in metadata.tensors() {
            if wanted(&name) {
                let (start, end) = info.data_offsets;
                let entry = Entry {
                    shard: self.shards.len(),
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range: data + start..data + end,
                };
                self.tensors.insert(name, entry);
            }
        }
        self.shards.push(bytes);
        Ok(())
    }
}

/// Whether the name is that of a file in the same directory: no separators, no `..`, not absolute.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    // A backslash separates on Windows only; no real shard has one.
    matches!(components.next(), Some(Component::Normal(only)) if only == OsStr::new(name))
        && components.next().is_none()
        && !name.contains('\\')
}

fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, ModelError> {
    let text = json::read_bounded(path, limit).map_err(|error| match error {
        ReadError::Io(source) => ModelError::Io { file: path.to_owned(), source },
        ReadError::TooLarge(got) => ModelError::FileTooLarge { file: path.to_owned(), limit, got },
    })?;
    json::from_slice(&text).map_err(|error| ModelError::Json {
        file: path.to_owned(),
        source: message(error).to_string().into(),
    })
}
