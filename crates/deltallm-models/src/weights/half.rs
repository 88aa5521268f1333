//! 16-bit floats that stay what they are in the file.

use ndarray::Array2;
use rayon::prelude::*;

use super::{ModelFile, RawTensor, TensorId};
use crate::{ModelConfig, ModelError};

impl ModelFile {
    /// Reads rows of 16-bit numbers in parallel, in canonical order.
    pub(super) fn halves<T: Copy + Default + Into<f32> + Send + Sync>(
        &self,
        config: &ModelConfig,
        id: TensorId,
        raw: &RawTensor<'_>,
        read: impl Fn([u8; 2]) -> T + Sync,
        finite: impl Fn(T) -> bool + Sync,
    ) -> Result<Array2<T>, ModelError> {
        // Enough work for a task to be worth its hand-over.
        const LEAST_ELEMENTS: usize = 1 << 16;
        let [rows, columns] = id.shape(config);
        let bytes = raw.bytes.as_chunks().0;
        let source_row = self.source_row(config, id);
        // The file holds this many elements, so the allocation is bounded by its size.
        let mut values = vec![T::default(); bytes.len()];
        values
            .par_chunks_mut(columns)
            .enumerate()
            .with_min_len(LEAST_ELEMENTS.div_ceil(columns))
            .try_for_each(|(row, values)| {
                let row = source_row(row);
                for (value, bytes) in values.iter_mut().zip(&bytes[row * columns..]) {
                    *value = read(*bytes);
                }
                self.refuse_non_finite(raw, row, values, &finite)
            })?;
        self.table(id, [rows, columns], values)
    }
}
