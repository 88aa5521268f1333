//! An open model, whatever its file format, and its tensors as they lie in the file.

#[cfg(feature = "gguf")]
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use deltallm_simd::Isa;

#[cfg(feature = "gguf")]
use crate::files::gguf_model::GgufModel;
use crate::files::names::{Format, Part};
#[cfg(feature = "safetensors")]
use crate::files::sees_images::{self, text_part};
use crate::quant::TensorType;
#[cfg(feature = "safetensors")]
use crate::{Architecture, SafetensorsModel};
#[cfg(feature = "gguf")]
use crate::{
    Bytes,
    gguf::{self, GgufFile},
};
use crate::{ConfigError, LinearForm, ModelConfig, ModelError, TensorId};

#[cfg(not(any(feature = "gguf", feature = "safetensors")))]
compile_error!("enable at least one file format of this crate: `gguf` or `safetensors`");

/// An open model: a GGUF file, or a directory with `config.json` and safetensors files.
///
/// Weights stay in the mapped file until they are asked for.
///
/// ```
/// use deltallm_models::{LayerTensor, ModelFile, TensorId};
///
/// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3")?;
/// let config = file.config()?;
/// let query = file.matrix(&config, TensorId::Layer(0, LayerTensor::Query))?;
/// assert_eq!(query.dim(), (config.heads * config.head_dim, config.hidden_size));
/// # Ok::<(), deltallm_models::ModelError>(())
/// ```
#[derive(Debug)]
pub struct ModelFile {
    /// The file or directory, for messages.
    pub(super) path: PathBuf,
    pub(super) source: Source,
    pub(super) form: LinearForm,
    pub(super) isa: Isa,
}

#[derive(Debug)]
pub(super) enum Source {
    #[cfg(feature = "gguf")]
    Gguf(GgufModel),
    #[cfg(feature = "safetensors")]
    Safetensors(SafetensorsModel),
}

/// A tensor as it lies in the file.
pub(super) struct RawTensor<'a> {
    pub(super) name: String,
    pub(super) ty: TensorType,
    /// Outermost dimension first.
    pub(super) shape: &'a [usize],
    pub(super) bytes: &'a [u8],
}

impl ModelFile {
    /// Opens a GGUF file (recognised by its first bytes, not its name), a `.safetensors` file with a `config.json`
    /// beside it, or a directory with both. Of a GGUF file that `gguf-split` has cut, the other parts lie beside it.
    ///
    /// # Errors
    /// [`ModelError`], naming the file and what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        #[cfg(feature = "safetensors")]
        if path.is_dir() {
            let source = Source::Safetensors(SafetensorsModel::open_directory(path)?);
            return Ok(Self::new(path.to_owned(), source));
        }
        let start = first_bytes(path)?;
        #[cfg(feature = "gguf")]
        if start == gguf::MAGIC {
            return Ok(Self::new(path.to_owned(), Source::Gguf(GgufModel::open(path)?)));
        }
        #[cfg(feature = "safetensors")]
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let source = Source::Safetensors(SafetensorsModel::open_file(path)?);
            return Ok(Self::new(path.to_owned(), source));
        }
        Err(ModelError::UnknownFormat { file: path.to_owned(), start })
    }

    fn new(path: PathBuf, source: Source) -> Self {
        Self { path, source, form: LinearForm::default(), isa: Isa::best() }
    }

    /// Opens a GGUF file that is in memory, for example one that is part of the program. `name` stands for the file's
    /// name in messages.
    ///
    /// # Errors
    /// [`ModelError::Gguf`]; [`ModelError::Split`] for a part of a model.
    #[cfg(feature = "gguf")]
    pub fn from_gguf_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        let path = PathBuf::from(name);
        let source = Source::Gguf(GgufModel::from_bytes(&path, Bytes::from(bytes.into()))?);
        Ok(Self::new(path, source))
    }

    /// The same file, whose quantised weights are to be held in that form. [`matrix`](Self::matrix) answers `f32` in any.
    ///
    /// ```
    /// use deltallm_models::{LinearForm, Model, ModelFile};
    ///
    /// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let exact = Model::load(&file.with_linear_form(LinearForm::F32))?;
    /// # Ok::<(), deltallm_models::ModelError>(())
    /// ```
    pub fn with_linear_form(self, form: LinearForm) -> Self {
        Self { form, ..self }
    }

    /// The same file, whose weights are to be multiplied with that instruction set; the best of this machine unless said
    /// otherwise. Weights in `f32` are multiplied by the crate `gemm`, which chooses for itself.
    ///
    /// ```
    /// use deltallm_attn::Isa;
    /// use deltallm_models::{Model, ModelFile};
    ///
    /// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let model = Model::load(&file.with_isa(Isa::from_env()?))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// The instruction set that its weights are to be multiplied with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The file or directory as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header of a GGUF file, which holds the tokenizer too; `None` for other formats. Of a split model it is that of the
    /// first file, which has the metadata of all.
    #[cfg(feature = "gguf")]
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.gguf_model().map(GgufModel::header)
    }

    /// The headers of all files of a GGUF model, of which most have one; none for other formats.
    #[cfg(feature = "gguf")]
    pub fn gguf_files(&self) -> impl Iterator<Item = &GgufFile> {
        self.gguf_model().into_iter().flat_map(GgufModel::files).map(|(header, _)| header)
    }

    #[cfg(feature = "gguf")]
    fn gguf_model(&self) -> Option<&GgufModel> {
        match &self.source {
            Source::Gguf(model) => Some(model),
            #[cfg(feature = "safetensors")]
            Source::Safetensors(_) => None,
        }
    }

    /// The directory of safetensors files, which holds the tokenizer's files too; `None` for other formats.
    #[cfg(feature = "safetensors")]
    pub fn safetensors(&self) -> Option<&SafetensorsModel> {
        match &self.source {
            Source::Safetensors(model) => Some(model),
            #[cfg(feature = "gguf")]
            Source::Gguf(_) => None,
        }
    }

    /// The model's parameters.
    ///
    /// # Errors
    /// [`ModelError::Config`] for an unknown architecture, or parameters that are inconsistent or not understood;
    /// [`ModelError::MissingTensor`] without an embedding, [`ModelError::UnknownTensor`] for tensors that are not understood.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let config = match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf(model) => {
                ModelConfig::from_gguf_parts(model.header().metadata(), &Vec::from_iter(model.files()))
            }
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => ModelConfig::from_value(model.config()),
        };
        let config = config.map_err(|source| self.config_error(source))?;
        let rows = self.embedding_rows()?;
        if config.vocab_size != rows {
            return Err(self.config_error(ConfigError::Vocabulary { rows, got: config.vocab_size }));
        }
        self.refuse_unknown_tensors(&config)?;
        Ok(config)
    }

    /// The ids that the model knows, which may be more than there are tokens.
    pub(crate) fn embedding_rows(&self) -> Result<usize, ModelError> {
        let embedding = self.raw(TensorId::TokenEmbedding, Part::Weight)?;
        Ok(embedding.shape.first().copied().unwrap_or_default())
    }

    /// The parameters are not usable.
    pub(crate) fn config_error(&self, source: ConfigError) -> ModelError {
        ModelError::Config { file: self.path.clone(), source }
    }

    /// `[out, in]` of a tensor, of parameters that are consistent: whoever asks may have changed them.
    pub(super) fn shape(&self, config: &ModelConfig, id: TensorId) -> Result<[usize; 2], ModelError> {
        config.validate().map_err(|source| self.config_error(source))?;
        Ok(id.shape(config))
    }

    pub(super) fn format(&self) -> Format {
        match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf(_) => Format::Gguf,
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => {
                let name = model.config()["model_type"].as_str().unwrap_or_default();
                match Architecture::from_model_type(name).or(text_part(model.config())) {
                    Some(architecture) if architecture.has_post_norms() => Format::SafetensorsWithPostNorms,
                    _ => Format::Safetensors,
                }
            }
        }
    }

    pub(super) fn raw_of_shape(
        &self,
        id: TensorId,
        part: Part,
        shape: &[usize],
    ) -> Result<RawTensor<'_>, ModelError> {
        let raw = self.raw(id, part)?;
        if raw.shape == shape {
            return Ok(raw);
        }
        Err(ModelError::TensorShape {
            file: self.path.clone(),
            tensor: raw.name,
            expected: shape.to_vec(),
            got: raw.shape.to_vec(),
        })
    }

    /// The name that a tensor has in this file.
    pub(super) fn name(&self, id: TensorId, part: Part) -> String {
        let name = id.name(self.format(), part);
        match &self.source {
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) if text_part(model.config()).is_some() => {
                sees_images::names(&name).into_iter().find(|name| model.contains(name)).unwrap_or(name)
            }
            _ => name,
        }
    }

    pub(super) fn contains(&self, id: TensorId, part: Part) -> bool {
        let name = self.name(id, part);
        match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf(model) => model.tensor(&name).is_some(),
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => model.contains(&name),
        }
    }

    pub(super) fn raw(&self, id: TensorId, part: Part) -> Result<RawTensor<'_>, ModelError> {
        let name = self.name(id, part);
        match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf(model) => {
                let Some((info, bytes)) = model.tensor(&name) else {
                    return Err(ModelError::MissingTensor { file: self.path.clone(), tensor: name });
                };
                Ok(RawTensor { name, ty: info.ty, shape: &info.shape, bytes })
            }
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => {
                let (ty, shape, bytes) = model.tensor(&name)?;
                Ok(RawTensor { name, ty, shape, bytes })
            }
        }
    }
}

fn first_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::Io { file: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start).map_err(io)?;
    Ok(start)
}
