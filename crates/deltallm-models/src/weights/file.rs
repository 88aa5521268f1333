//! One view of a model's weights, whatever file format they come from.

mod half;
mod layers;
mod linear;
mod matrix;
mod names;
mod quantised;
mod ternary;

#[cfg(feature = "gguf")]
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

use ::half::{bf16, f16};
use deltallm_simd::Isa;
pub use layers::{LayerWeights, ModelWeights};
pub use linear::{Linear, LinearForm};
pub use matrix::Matrix;
use names::{Format, Part};
pub use names::{LayerTensor, TensorId};
use ndarray::{Array1, Array2};
use rayon::prelude::*;

use crate::config::ConfigError;
use crate::quant::{self, TensorType};
#[cfg(feature = "safetensors")]
use crate::safetensors::SafetensorsModel;
#[cfg(feature = "gguf")]
use crate::{
    Bytes,
    gguf::{self, GgufFile},
};
use crate::{ModelConfig, ModelError};

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
    path: PathBuf,
    source: Source,
    form: LinearForm,
    isa: Isa,
}

#[derive(Debug)]
enum Source {
    #[cfg(feature = "gguf")]
    Gguf { header: GgufFile, bytes: Bytes },
    #[cfg(feature = "safetensors")]
    Safetensors(SafetensorsModel),
}

/// A tensor as it lies in the file.
struct RawTensor<'a> {
    name: String,
    ty: TensorType,
    /// Outermost dimension first.
    shape: &'a [usize],
    bytes: &'a [u8],
}

impl ModelFile {
    /// Opens a GGUF file (recognised by its first bytes, not its name), a `.safetensors` file with a `config.json`
    /// beside it, or a directory with both.
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
            return Self::from_gguf(path.to_owned(), Bytes::map(path)?);
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
    /// [`ModelError::Gguf`].
    #[cfg(feature = "gguf")]
    pub fn from_gguf_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        Self::from_gguf(PathBuf::from(name), Bytes::from(bytes.into()))
    }

    #[cfg(feature = "gguf")]
    fn from_gguf(path: PathBuf, bytes: Bytes) -> Result<Self, ModelError> {
        let header =
            GgufFile::parse(&bytes).map_err(|source| ModelError::Gguf { file: path.clone(), source })?;
        Ok(Self::new(path, Source::Gguf { header, bytes }))
    }

    /// The same file, whose quantised weights are to be held in that form. [`matrix`](Self::matrix) answers `f32` in any.
    ///
    /// ```
    /// use deltallm_models::{LinearForm, Model, ModelFile};
    ///
    /// let file = ModelFile::open("tests/fixtures/llama/gqa3-d64-llama3/model.gguf")?;
    /// let exact = Model::load(&file.with_linear_form(LinearForm::F32), &mut |_, _| {})?;
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
    /// let model = Model::load(&file.with_isa(Isa::from_env()?), &mut |_, _| {})?;
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

    /// The header of a GGUF file, which holds the tokenizer too; `None` for other formats.
    #[cfg(feature = "gguf")]
    pub fn gguf(&self) -> Option<&GgufFile> {
        match &self.source {
            Source::Gguf { header, .. } => Some(header),
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
            Source::Gguf { .. } => None,
        }
    }

    /// The model's parameters.
    ///
    /// # Errors
    /// [`ModelError::Config`] for an unknown architecture or inconsistent parameters, [`ModelError::MissingTensor`]
    /// without an embedding.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        let config = match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf { header, bytes } => ModelConfig::from_gguf(header, bytes),
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => ModelConfig::from_json(model.config()),
        };
        let error = |source| ModelError::Config { file: self.path.clone(), source };
        let config = config.map_err(error)?;
        let rows =
            self.raw(TensorId::TokenEmbedding, Part::Weight)?.shape.first().copied().unwrap_or_default();
        if config.vocab_size == rows {
            Ok(config)
        } else {
            Err(error(ConfigError::Vocabulary { rows, got: config.vocab_size }))
        }
    }

    /// A weight matrix as `f32`, `[out, in]` in standard (row-major) layout.
    ///
    /// The rows of the query and key projections are in half-split RoPE order, channel `i` of a head rotating with
    /// channel `i + head_dim / 2`, whatever the file's order (see [`TensorId`]). Ternary weights come with their scale.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::ElementType`] or
    /// [`ModelError::NonFiniteWeight`]; for ternary weights those of [`ModelFile::ternary`].
    pub fn matrix(&self, config: &ModelConfig, id: TensorId) -> Result<Array2<f32>, ModelError> {
        if id.is_ternary(config) {
            return Ok(Matrix::Ternary(self.ternary(config, id)?).to_dense().into_owned());
        }
        let [rows, columns] = id.shape(config);
        self.table(id, [rows, columns], self.read(id, Part::Weight, &[rows, columns], config)?)
    }

    /// A projection, the embedding or the head in the form that it is multiplied in: ternary weights, quantised ones (unless the
    /// [form](Self::with_linear_form) is `f32`), half precision and `bf16` stay what they are, everything else becomes `f32`.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn weight(&self, config: &ModelConfig, id: TensorId) -> Result<Matrix, ModelError> {
        let weight = self.read_weight(config, id)?;
        // From here on the copy is read.
        if let Ok(raw) = self.raw(id, Part::Weight) {
            match &self.source {
                #[cfg(feature = "gguf")]
                Source::Gguf { bytes, .. } => bytes.release(raw.bytes),
                #[cfg(feature = "safetensors")]
                Source::Safetensors(model) => model.release(raw.bytes),
            }
        }
        Ok(weight)
    }

    fn read_weight(&self, config: &ModelConfig, id: TensorId) -> Result<Matrix, ModelError> {
        if id.is_ternary(config) {
            return Ok(Matrix::Ternary(self.ternary(config, id)?));
        }
        let raw = self.raw_of_shape(id, Part::Weight, &id.shape(config))?;
        Ok(match raw.ty {
            TensorType::F16 => {
                Matrix::F16(self.halves(config, id, &raw, f16::from_le_bytes, f16::is_finite)?)
            }
            TensorType::BF16 => {
                Matrix::Bf16(self.halves(config, id, &raw, bf16::from_le_bytes, bf16::is_finite)?)
            }
            _ => match self.quantised(config, id)? {
                Some(weight) => Matrix::Quantised(weight),
                None => Matrix::F32(self.matrix(config, id)?),
            },
        })
    }

    /// A projection: its [weights](Self::weight), and its bias.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn linear(&self, config: &ModelConfig, id: TensorId) -> Result<Linear, ModelError> {
        Ok(Linear { weight: self.weight(config, id)?, bias: self.bias(config, id)? })
    }

    /// The weight of a norm as `f32`, as long as what it normalises.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn norm(&self, config: &ModelConfig, id: TensorId) -> Result<Array1<f32>, ModelError> {
        let [length, _] = id.shape(config);
        self.read(id, Part::Weight, &[length], config).map(Array1::from)
    }

    /// The bias of a projection as `f32`, `[out]`, in the order of the matrix's rows; `None` where the model's
    /// parameters say that there is none.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn bias(&self, config: &ModelConfig, id: TensorId) -> Result<Option<Array1<f32>>, ModelError> {
        if !id.has_bias(config) {
            return Ok(None);
        }
        let [rows, _] = id.shape(config);
        self.read(id, Part::Bias, &[rows], config).map(|values| Some(Array1::from(values)))
    }

    /// Reads a tensor of the given shape into row-major `f32`, rows in canonical order.
    fn read(
        &self,
        id: TensorId,
        part: Part,
        shape: &[usize],
        config: &ModelConfig,
    ) -> Result<Vec<f32>, ModelError> {
        let raw = self.raw_of_shape(id, part, shape)?;
        if raw.ty == TensorType::I2_S {
            // Its rows do not stand alone; and only projections come in this type.
            let expected = "a type of rows of blocks";
            return Err(self.element_type(&raw, expected));
        }
        let source_row = self.source_row(config, id);
        match *shape {
            [_, columns] => self.convert(&raw, columns, source_row),
            _ => {
                let stored = self.convert(&raw, raw.shape.iter().product(), |row| row)?;
                Ok((0..stored.len()).map(|row| stored[source_row(row)]).collect())
            }
        }
    }

    /// Where the file has a row of a tensor.
    fn source_row(
        &self,
        config: &ModelConfig,
        id: TensorId,
    ) -> impl Fn(usize) -> usize + Copy + Sync + use<> {
        let head_dim = config.head_dim;
        let interleaved =
            self.format() == Format::Gguf && id.is_rotated() && config.architecture.is_interleaved_in_gguf();
        move |row| if interleaved { interleaved_row(row, head_dim) } else { row }
    }

    /// Converts the rows of a tensor in parallel; row `i` of the answer is row `source_row(i)` of the file.
    fn convert(
        &self,
        raw: &RawTensor<'_>,
        columns: usize,
        source_row: impl Fn(usize) -> usize + Sync,
    ) -> Result<Vec<f32>, ModelError> {
        let quant = |source| ModelError::Quant { file: self.path.clone(), tensor: raw.name.clone(), source };
        let elements: usize = raw.shape.iter().product();
        let row_bytes = raw.bytes.len() / (elements / columns);
        fill_rows(elements, columns, |row, out| {
            let row = source_row(row);
            let bytes = raw.bytes.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default();
            quant::dequantize(raw.ty, bytes, out).map_err(quant)?;
            self.refuse_non_finite(raw, row, out, f32::is_finite)
        })
    }

    /// Values whose number has been checked against the shape, as a table.
    fn table<T>(&self, id: TensorId, shape: [usize; 2], values: Vec<T>) -> Result<Array2<T>, ModelError> {
        let got = values.len();
        Array2::from_shape_vec(shape, values).map_err(|_| ModelError::TensorShape {
            file: self.path.clone(),
            tensor: format!("{id:?}"),
            expected: shape.to_vec(),
            got: vec![got],
        })
    }

    fn refuse_non_finite<T: Copy + Into<f32>>(
        &self,
        raw: &RawTensor<'_>,
        row: usize,
        values: &[T],
        finite: impl Fn(T) -> bool,
    ) -> Result<(), ModelError> {
        // Without an early exit this is a few vector instructions a row.
        if values.iter().fold(true, |all, &x| all & finite(x)) {
            return Ok(());
        }
        let column = values.iter().position(|&x| !finite(x)).unwrap_or_default();
        Err(ModelError::NonFiniteWeight {
            file: self.path.clone(),
            tensor: raw.name.clone(),
            row,
            column,
            got: values[column].into(),
        })
    }

    fn element_type(&self, raw: &RawTensor<'_>, expected: &'static str) -> ModelError {
        let (file, tensor, got) = (self.path.clone(), raw.name.clone(), raw.ty.to_string());
        ModelError::ElementType { file, tensor, expected, got }
    }

    fn format(&self) -> Format {
        match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf { .. } => Format::Gguf,
            #[cfg(feature = "safetensors")]
            Source::Safetensors(_) => Format::Safetensors,
        }
    }

    fn raw_of_shape(&self, id: TensorId, part: Part, shape: &[usize]) -> Result<RawTensor<'_>, ModelError> {
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

    fn raw(&self, id: TensorId, part: Part) -> Result<RawTensor<'_>, ModelError> {
        let name = id.name(self.format(), part);
        match &self.source {
            #[cfg(feature = "gguf")]
            Source::Gguf { header, bytes } => {
                let Some(info) = header.tensor(&name) else {
                    return Err(ModelError::MissingTensor { file: self.path.clone(), tensor: name });
                };
                let bytes = bytes.get(info.range.clone()).unwrap_or_default();
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

/// Makes rows of `columns` elements, in parallel. A file holds as many `elements`, so the allocation is bounded by its size.
fn fill_rows<T: Clone + Default + Send>(
    elements: usize,
    columns: usize,
    fill: impl Fn(usize, &mut [T]) -> Result<(), ModelError> + Sync,
) -> Result<Vec<T>, ModelError> {
    // Enough work for a task to be worth its hand-over.
    const LEAST_ELEMENTS: usize = 1 << 16;
    let mut values = vec![T::default(); elements];
    let rows = values.par_chunks_exact_mut(columns).enumerate();
    rows.with_min_len(LEAST_ELEMENTS.div_ceil(columns)).try_for_each(|(row, out)| fill(row, out))?;
    Ok(values)
}

/// Where the converter to GGUF has put a row of a query or key projection.
///
/// Its Llama graph rotates neighbouring channels, (2i, 2i + 1), so the converter moves channel `i` of a head to row
/// `2i` and channel `i + head_dim / 2` to row `2i + 1` (`LlamaModel.permute` in llama.cpp's `convert_hf_to_gguf.py`).
fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, channel) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (channel % half) + channel / half
}

fn first_bytes(path: &Path) -> Result<Vec<u8>, ModelError> {
    let io = |source| ModelError::Io { file: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start).map_err(io)?;
    Ok(start)
}
