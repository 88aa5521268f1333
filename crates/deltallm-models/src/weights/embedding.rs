//! The token embedding and the head, the largest tables of small models, in the type that the file has them in.

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip};
use rayon::prelude::*;

use super::{ModelFile, Part, RawTensor, TensorId};
use crate::inputs::{Inputs, Rounded};
use crate::kernels::{matmul_half, matmul_transposed};
use crate::quant::TensorType;
use crate::{ModelConfig, ModelError, QuantisedLinear};

/// A table of one row per token of the vocabulary, `[vocab_size, hidden_size]` in standard layout.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Embedding {
    /// Single precision; also what types without a form of their own become.
    F32(Array2<f32>),
    /// Half precision, as in the file.
    F16(Array2<f16>),
    /// The upper half of an `f32`, as in the file.
    Bf16(Array2<bf16>),
    /// Quantised, as in the file. The head rounds its inputs to 8 bits.
    Quantised(QuantisedLinear),
}

impl Embedding {
    /// Tokens and channels.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::F32(table) => table.dim(),
            Self::F16(table) => table.dim(),
            Self::Bf16(table) => table.dim(),
            Self::Quantised(table) => (table.rows(), table.columns()),
        }
    }

    /// The rows of tokens, `[tokens, hidden_size]`.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn rows(&self, ids: &[usize]) -> Array2<f32> {
        let mut rows = Array2::zeros((ids.len(), self.dim().1));
        self.rows_into(ids.iter().copied(), rows.view_mut());
        rows
    }

    /// [`rows`](Self::rows) into `rows`, which is in standard layout.
    pub(crate) fn rows_into(&self, ids: impl IntoIterator<Item = usize>, mut rows: ArrayViewMut2<f32>) {
        for (id, mut row) in ids.into_iter().zip(rows.outer_iter_mut()) {
            match self {
                Self::F32(table) => row.assign(&table.row(id)),
                Self::F16(table) => Zip::from(row).and(table.row(id)).for_each(|x, half| *x = half.to_f32()),
                Self::Bf16(table) => Zip::from(row).and(table.row(id)).for_each(|x, half| *x = half.to_f32()),
                Self::Quantised(table) => {
                    if let Some(row) = row.as_slice_mut() {
                        table.row(id, row);
                    }
                }
            }
        }
    }

    /// The products of `x`, `[tokens, hidden_size]`, with every row, `[tokens, vocab_size]`.
    pub fn logits(&self, x: &ArrayView2<f32>) -> Array2<f32> {
        self.logits_of(&mut Inputs::new(x.view(), &mut Rounded::default()))
    }

    /// [`logits`](Self::logits), with memory for rounding.
    pub(crate) fn logits_of(&self, inputs: &mut Inputs<'_>) -> Array2<f32> {
        match self {
            Self::F32(table) => matmul_transposed(&inputs.x, &table.view()),
            Self::F16(table) => matmul_half(&inputs.x, &table.view()),
            Self::Bf16(table) => matmul_half(&inputs.x, &table.view()),
            Self::Quantised(table) => {
                let mut y = Array2::zeros((inputs.x.nrows(), table.rows()));
                table.apply_into(inputs, y.view_mut());
                y
            }
        }
    }
}

impl ModelFile {
    /// The embedding or the head. Half precision and `bf16` stay what they are, and so do quantised types unless the
    /// [form](ModelFile::with_linear_form) is `f32`; everything else becomes `f32`.
    ///
    /// # Errors
    /// As [`ModelFile::matrix`].
    pub fn embedding(&self, config: &ModelConfig, id: TensorId) -> Result<Embedding, ModelError> {
        let shape @ [rows, columns] = id.shape(config);
        let raw = self.raw_of_shape(id, Part::Weight, &shape)?;
        Ok(match raw.ty {
            TensorType::F16 => {
                let values = self.halves(&raw, columns, f16::from_le_bytes, f16::is_finite)?;
                Embedding::F16(self.table(id, [rows, columns], values)?)
            }
            TensorType::BF16 => {
                let values = self.halves(&raw, columns, bf16::from_le_bytes, bf16::is_finite)?;
                Embedding::Bf16(self.table(id, [rows, columns], values)?)
            }
            _ => match self.quantised(config, id)? {
                Some(table) => Embedding::Quantised(table),
                None => Embedding::F32(self.matrix(config, id)?),
            },
        })
    }

    /// Reads rows of 16-bit numbers, in parallel.
    fn halves<T: Copy + Default + Into<f32> + Send + Sync>(
        &self,
        raw: &RawTensor<'_>,
        columns: usize,
        read: impl Fn([u8; 2]) -> T + Sync,
        finite: impl Fn(T) -> bool + Sync,
    ) -> Result<Vec<T>, ModelError> {
        // Enough work for a task to be worth its hand-over.
        const LEAST_ELEMENTS: usize = 1 << 16;
        let bytes = raw.bytes.as_chunks().0;
        let mut values = vec![T::default(); bytes.len()];
        values
            .par_chunks_mut(columns)
            .zip(bytes.par_chunks(columns))
            .enumerate()
            .with_min_len(LEAST_ELEMENTS.div_ceil(columns))
            .try_for_each(|(row, (values, bytes))| {
                for (value, bytes) in values.iter_mut().zip(bytes) {
                    *value = read(*bytes);
                }
                self.refuse_non_finite(raw, row, values, &finite)
            })?;
        Ok(values)
    }
}
