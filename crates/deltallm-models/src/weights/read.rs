//! Rows of tensors as numbers: converted, checked, and in the order that the graph wants.

use ndarray::{Array1, Array2};
use rayon::prelude::*;

use super::file::{ModelFile, RawTensor};
use crate::files::names::{Format, Part};
use crate::quant::{self, TensorType};
use crate::{ModelConfig, ModelError, TensorId};

impl ModelFile {
    /// The weight of a norm as `f32`, as long as what it normalises.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn norm(&self, config: &ModelConfig, id: TensorId) -> Result<Array1<f32>, ModelError> {
        let [length, _] = self.shape(config, id)?;
        let mut weight = Array1::from(self.read(id, Part::Weight, &[length], config)?);
        if self.format() != Format::Gguf && config.architecture.stores_norms_less_one() {
            weight += 1.0;
        }
        Ok(weight)
    }

    /// The bias of a projection as `f32`, `[out]`, in the order of the matrix's rows; `None` where the file has none. (Where
    /// a `config.json` promises one, `transformers` takes zeros then.)
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn bias(&self, config: &ModelConfig, id: TensorId) -> Result<Option<Array1<f32>>, ModelError> {
        if !self.contains(id, Part::Bias) {
            return Ok(None);
        }
        let [rows, _] = self.shape(config, id)?;
        self.read(id, Part::Bias, &[rows], config).map(|values| Some(Array1::from(values)))
    }

    /// Reads a tensor of the given shape into row-major `f32`, rows in canonical order.
    pub(super) fn read(
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
    pub(super) fn source_row(
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
    pub(super) fn table<T>(
        &self,
        id: TensorId,
        shape: [usize; 2],
        values: Vec<T>,
    ) -> Result<Array2<T>, ModelError> {
        let got = values.len();
        Array2::from_shape_vec(shape, values).map_err(|_| ModelError::TensorShape {
            file: self.path.clone(),
            tensor: format!("{id:?}"),
            expected: shape.to_vec(),
            got: vec![got],
        })
    }

    pub(super) fn refuse_non_finite<T: Copy + Into<f32>>(
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

    pub(super) fn element_type(&self, raw: &RawTensor<'_>, expected: &'static str) -> ModelError {
        let (file, tensor, got) = (self.path.clone(), raw.name.clone(), raw.ty.to_string());
        ModelError::ElementType { file, tensor, expected, got }
    }
}

/// Makes rows of `columns` elements, in parallel. A file holds as many `elements`, so the allocation is bounded by its size.
pub(super) fn fill_rows<T: Clone + Default + Send>(
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
