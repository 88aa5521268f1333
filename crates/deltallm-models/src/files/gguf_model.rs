//! The files of a GGUF model: one, or several that llama.cpp's `gguf-split` has made of one.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::gguf::{GgufError, GgufFile, SplitError, TensorInfo};
use crate::{Bytes, ModelError};

/// The metadata of a split model: which part a file is, of how many, and the tensors in all of them.
const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The files of a model, open.
#[derive(Debug)]
pub(crate) struct GgufModel {
    first: Part,
    /// In their order.
    others: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    header: GgufFile,
    bytes: Bytes,
}

/// What a part says about itself.
struct Split {
    /// Counted from 0.
    no: u64,
    count: u64,
}

impl GgufModel {
    /// Maps a file and, if it is part of a split model, the others, which lie beside it. Any part may be named.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let named = Part::map(path, None)?;
        let Some(split) = named.split(path)? else { return Ok(Self { first: named, others: Vec::new() }) };
        let stem = stem(path, &split).map_err(|source| error(path, source))?;
        let first = Part::of(&stem, 0, split.count, None)?;
        let others = (1..split.count).map(|no| Part::of(&stem, no, split.count, Some(&first.header)));
        let others = others.collect::<Result<_, _>>()?;
        let model = Self { first, others };
        model.check_tensors(path)?;
        Ok(model)
    }

    /// A file in memory, which must be the whole model.
    pub(crate) fn from_bytes(path: &Path, bytes: Bytes) -> Result<Self, ModelError> {
        let first = Part::parse(path, bytes, None)?;
        match first.split(path)? {
            None => Ok(Self { first, others: Vec::new() }),
            Some(Split { no, count }) => {
                Err(error(path, SplitError::Alone { part: no.saturating_add(1), count }))
            }
        }
    }

    /// That of the first file, which has the metadata of all.
    pub(crate) fn header(&self) -> &GgufFile {
        &self.first.header
    }

    /// The header and the bytes of every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&GgufFile, &[u8])> {
        std::iter::once(&self.first).chain(&self.others).map(|part| (&part.header, &*part.bytes))
    }

    /// The tensor of that name and its bytes.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        self.files().find_map(|(header, bytes)| {
            let tensor = header.tensor(name)?;
            Some((tensor, bytes.get(tensor.range.clone()).unwrap_or_default()))
        })
    }

    /// See [`Bytes::release`].
    pub(crate) fn release(&self, bytes: &[u8]) {
        self.first.bytes.release(bytes);
        self.others.iter().for_each(|part| part.bytes.release(bytes));
    }

    fn check_tensors(&self, path: &Path) -> Result<(), ModelError> {
        let mut names = HashSet::new();
        for tensor in self.files().flat_map(|(header, _)| header.tensors()) {
            if !names.insert(&tensor.name) {
                return Err(error(path, SplitError::DuplicateTensor { tensor: tensor.name.clone() }));
            }
        }
        let (expected, got) = (integer(path, self.header(), TENSORS)?, names.len() as u64);
        match expected {
            Some(expected) if expected != got => Err(error(path, SplitError::Tensors { expected, got })),
            _ => Ok(()),
        }
    }
}

impl Part {
    fn map(path: &Path, first: Option<&GgufFile>) -> Result<Self, ModelError> {
        Self::parse(path, Bytes::map(path)?, first)
    }

    fn parse(path: &Path, bytes: Bytes, first: Option<&GgufFile>) -> Result<Self, ModelError> {
        let header = GgufFile::parse_part(&bytes, first);
        let header = header.map_err(|source| ModelError::Gguf { file: path.to_owned(), source })?;
        Ok(Self { header, bytes })
    }

    /// Part `no`, counted from 0, of the model whose parts' names begin with `stem`.
    fn of(stem: &Path, no: u64, count: u64, first: Option<&GgufFile>) -> Result<Self, ModelError> {
        let mut name = stem.as_os_str().to_owned();
        name.push(ending(no, count));
        let path = PathBuf::from(name);
        let part = Self::map(&path, first).map_err(|open| match open {
            ModelError::Io { source, .. } if source.kind() == ErrorKind::NotFound => {
                error(&path, SplitError::Missing { part: no + 1, count })
            }
            other => other,
        })?;
        part.check(&path, no, count, first)?;
        Ok(part)
    }

    /// What a file says about the model that it is a part of, if it is one of several.
    fn split(&self, path: &Path) -> Result<Option<Split>, ModelError> {
        let Some(count) = integer(path, &self.header, COUNT)?.filter(|&count| count > 1) else {
            return Ok(None);
        };
        let missing = || ModelError::Gguf {
            file: path.to_owned(),
            source: GgufError::MissingKey { key: NO.to_owned() },
        };
        Ok(Some(Split { no: integer(path, &self.header, NO)?.ok_or_else(missing)?, count }))
    }

    /// Whether it is the part that its name says, and all else that it says the first says too.
    fn check(&self, path: &Path, no: u64, count: u64, first: Option<&GgufFile>) -> Result<(), ModelError> {
        let differs = |key: &str, expected: String, got: String| {
            Err(error(path, SplitError::Differs { part: no + 1, key: key.to_owned(), expected, got }))
        };
        for (key, expected) in [(NO, no), (COUNT, count)] {
            let got = integer(path, &self.header, key)?;
            if got != Some(expected) {
                let got = got.map_or("nothing".to_owned(), |got| got.to_string());
                return differs(key, expected.to_string(), got);
            }
        }
        let Some(first) = first else { return Ok(()) };
        let own = ["general.alignment", NO];
        for (key, value) in self.header.metadata().iter().filter(|(key, _)| !own.contains(key)) {
            if first.metadata().get(key) != Some(value) {
                return differs(key, "as in part 1".to_owned(), "something else".to_owned());
            }
        }
        Ok(())
    }
}

/// What the name of a part ends in.
fn ending(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no.saturating_add(1))
}

/// The path of a part without what tells it from the others.
fn stem(path: &Path, split: &Split) -> Result<PathBuf, SplitError> {
    let expected = ending(split.no, split.count);
    let stem = path.to_str().and_then(|path| path.strip_suffix(&expected));
    stem.map(PathBuf::from).ok_or(SplitError::Name {
        part: split.no.saturating_add(1),
        count: split.count,
        expected,
    })
}

fn integer(path: &Path, header: &GgufFile, key: &str) -> Result<Option<u64>, ModelError> {
    let value = header.metadata().integer(key);
    value.map_err(|source| ModelError::Gguf { file: path.to_owned(), source })
}

fn error(path: &Path, source: SplitError) -> ModelError {
    ModelError::Split { file: path.to_owned(), source }
}
