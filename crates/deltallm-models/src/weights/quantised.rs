//! Quantised weights that stay quantised.

use deltallm_simd::dot::ByteKernel;

use super::file::ModelFile;
use crate::files::names::Part;
use crate::{LinearForm, ModelConfig, ModelError, QuantisedError, QuantisedLinear, TensorId};

impl ModelFile {
    /// The weights of a projection, the embedding or the head, `[out, in]`, rows of queries and keys in half-split order;
    /// `None` where the tensor's type or the [form](Self::with_linear_form) is another, or a scale too large to be packed.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::NonFiniteWeight`] or
    /// [`ModelError::Quantised`].
    pub(super) fn quantised(
        &self,
        config: &ModelConfig,
        id: TensorId,
    ) -> Result<Option<QuantisedLinear>, ModelError> {
        let shape @ [rows, columns] = self.shape(config, id)?;
        let raw = self.raw_of_shape(id, Part::Weight, &shape)?;
        if self.form == LinearForm::F32 || !QuantisedLinear::supports(raw.ty) {
            return Ok(None);
        }
        let source_row = self.source_row(config, id);
        let length = raw.bytes.len() / rows;
        let packed = QuantisedLinear::from_rows(raw.ty, rows, columns, |row| {
            raw.bytes
                .get(source_row(row) * length..)
                .and_then(|bytes| bytes.get(..length))
                .unwrap_or_default()
        });
        match packed {
            Ok(packed) => Ok(Some(packed.with_kernel(ByteKernel::of(self.isa)))),
            Err(QuantisedError::ScaleRange { .. }) => Ok(None),
            Err(QuantisedError::NonFinite { row, column, got }) => {
                let (file, tensor, row) = (self.path.clone(), raw.name, source_row(row));
                Err(ModelError::NonFiniteWeight { file, tensor, row, column, got })
            }
            Err(source) => Err(ModelError::Quantised { file: self.path.clone(), tensor: raw.name, source }),
        }
    }
}
