//! 16-bit floats that stay what they are in the file.

use super::file::{ModelFile, RawTensor};
use super::read::fill_rows;
use crate::{HalfLinear, ModelConfig, ModelError, TensorId};

impl ModelFile {
    /// Reads rows of 16-bit numbers in parallel, in canonical order.
    pub(super) fn halves<T: Copy + Default + Into<f32> + Send + Sync>(
        &self,
        config: &ModelConfig,
        id: TensorId,
        raw: &RawTensor<'_>,
        read: impl Fn([u8; 2]) -> T + Sync,
        finite: impl Fn(T) -> bool + Sync,
    ) -> Result<HalfLinear<T>, ModelError> {
        let [rows, columns] = self.shape(config, id)?;
        let bytes = raw.bytes.as_chunks().0;
        let source_row = self.source_row(config, id);
        let values = fill_rows(bytes.len(), columns, |row, values: &mut [T]| {
            let row = source_row(row);
            for (value, bytes) in values.iter_mut().zip(&bytes[row * columns..]) {
                *value = read(*bytes);
            }
            self.refuse_non_finite(raw, row, values, &finite)
        })?;
        Ok(HalfLinear::new(self.table(id, [rows, columns], values)?).with_isa(self.isa))
    }
}
