//! Which form a tensor is held and multiplied in.

use half::{bf16, f16};
use ndarray::Array2;

use super::file::{ModelFile, Source};
use crate::files::names::Part;
use crate::quant::TensorType;
use crate::{Linear, Matrix, ModelConfig, ModelError, TensorId};

impl ModelFile {
    /// A weight matrix as `f32`, `[out, in]` in standard (row-major) layout.
    ///
    /// The rows of the query and key projections are in half-split RoPE order, channel `i` of a head rotating with
    /// channel `i + head_dim / 2`, whatever the file's order (see [`TensorId`]). Ternary weights come with their scale.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::ElementType`] or
    /// [`ModelError::NonFiniteWeight`]; [`ModelError::Config`] for parameters that are not consistent; for ternary weights those of [`ModelFile::ternary`].
    pub fn matrix(&self, config: &ModelConfig, id: TensorId) -> Result<Array2<f32>, ModelError> {
        if id.is_ternary(config) {
            return Ok(Matrix::Ternary(self.ternary(config, id)?).to_dense().into_owned());
        }
        let [rows, columns] = self.shape(config, id)?;
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
                Source::Gguf(model) => model.release(raw.bytes),
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
        let raw = self.raw_of_shape(id, Part::Weight, &self.shape(config, id)?)?;
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
        let (weight, bias) = (self.weight(config, id)?, self.bias(config, id)?);
        if bias.is_none() && id.has_bias_always(config) {
            let tensor = id.name(self.format(), Part::Bias);
            return Err(ModelError::MissingTensor { file: self.path.clone(), tensor });
        }
        Ok(Linear { weight, bias })
    }
}
