//! Ternary projections, in every form that files have them in.
//!
//! - Packed on disk, with a scale: GGUF types `I2_S`, `TQ1_0` and `TQ2_0`, and bytes in safetensors files.
//! - As numbers that are ternary already, which is what llama.cpp's converter writes into F32, F16 or BF16 tensors.
//! - As the float weights of training ("masters"), which whoever loads them makes ternary.
//!
//! Whatever the form, the weights of a tensor become one [`TernaryLinear`] with one scale.

use deltallm_simd::dot::ByteKernel;
use rayon::prelude::*;

use super::file::{ModelFile, RawTensor, Source};
#[cfg(feature = "safetensors")]
use crate::SafetensorsModel;
#[cfg(feature = "safetensors")]
use crate::files::config::Quantization;
use crate::files::names::Part;
#[cfg(feature = "gguf")]
use crate::quant::ternary;
use crate::quant::{self, TensorType};
use crate::{ModelConfig, ModelError, TensorId, TernaryError, TernaryLinear};

/// What a tensor of float weights holds.
struct Magnitudes {
    /// Of all weights.
    mean: f64,
    /// The one magnitude of all weights that are not 0, if there is just one.
    #[cfg_attr(not(feature = "gguf"), expect(dead_code, reason = "converters to GGUF write such tensors"))]
    only: Option<f32>,
}

impl ModelFile {
    /// The weights of a projection of a BitNet model, `[out, in]`, rows of queries and keys in half-split order.
    ///
    /// Float weights are made ternary as in training: `round(w / m)`, between -1 and 1, times `m`, with `m` the mean
    /// magnitude in the type of the weights (`WeightQuant` of `transformers`).
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::TensorShape`], [`ModelError::ElementType`] or
    /// [`ModelError::NonFiniteWeight`]; [`ModelError::TernaryScale`], [`ModelError::BlockScale`],
    /// [`ModelError::PackedRows`], [`ModelError::NotTernary`] or [`ModelError::Ternary`].
    pub fn ternary(&self, config: &ModelConfig, id: TensorId) -> Result<TernaryLinear, ModelError> {
        let shape = self.shape(config, id)?;
        match &self.source {
            #[cfg(feature = "safetensors")]
            Source::Safetensors(model) => self.ternary_of_directory(model, id, shape),
            #[cfg(feature = "gguf")]
            Source::Gguf(_) => self.ternary_of_gguf(id, shape),
        }
    }

    #[cfg(feature = "safetensors")]
    fn ternary_of_directory(
        &self,
        model: &SafetensorsModel,
        id: TensorId,
        shape: [usize; 2],
    ) -> Result<TernaryLinear, ModelError> {
        let form = Quantization::from_value(model.config());
        let form = form.map_err(|source| self.config_error(source))?;
        match form {
            Quantization::Online => self.online(&self.raw_of_shape(id, Part::Weight, &shape)?, shape),
            Quantization::PackedTimesScale => self.unpack(model, id, shape, |scale| scale),
            Quantization::PackedOverScale => self.unpack(model, id, shape, f32::recip),
        }
    }

    #[cfg(feature = "gguf")]
    fn ternary_of_gguf(&self, id: TensorId, shape: [usize; 2]) -> Result<TernaryLinear, ModelError> {
        let raw = self.raw_of_shape(id, Part::Weight, &shape)?;
        // Optional, and most converters leave it out.
        let factor = match self.raw(id, Part::Scale) {
            Ok(scale) => Some(self.scale(&scale)?),
            Err(_) => None,
        };
        match raw.ty {
            TensorType::I2_S => self.i2_s(&raw, shape, factor),
            TensorType::TQ1_0 => self.blocks(&raw, shape, factor, ternary::tq1_0_codes),
            TensorType::TQ2_0 => self.blocks(&raw, shape, factor, ternary::tq2_0_codes),
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                let magnitudes = self.magnitudes(&raw, shape)?;
                match (magnitudes.only, factor) {
                    // Ternary already: rounded once more, the mean would take the place of the scale.
                    (Some(only), _) => {
                        let scale = self.checked_scale(&raw, only * factor.unwrap_or(1.0))?;
                        self.rounded(&raw, shape, only.recip(), scale)
                    }
                    (None, None) => self.online(&raw, shape),
                    (None, Some(_)) => {
                        Err(ModelError::NotTernary { file: self.path.clone(), tensor: raw.name })
                    }
                }
            }
            _ => Err(self.element_type(&raw, "type I2_S, TQ1_0, TQ2_0, F32, F16 or BF16")),
        }
    }

    #[cfg(feature = "gguf")]
    fn i2_s(
        &self,
        raw: &RawTensor<'_>,
        [rows, columns]: [usize; 2],
        factor: Option<f32>,
    ) -> Result<TernaryLinear, ModelError> {
        // The reader of the header has seen to the length.
        let (blocks, scale) = ternary::split_i2_s(raw.bytes).unwrap_or((&[], 0.0));
        let scale = self.checked_scale(raw, scale * factor.unwrap_or(1.0))?;
        let blocks = blocks.as_chunks().0;
        let per_row = columns / raw.ty.block_elements();
        self.pack(raw, rows, columns, scale, |row, out| {
            for (block, codes) in blocks[row * per_row..].iter().zip(out.as_chunks_mut().0) {
                ternary::i2_s_codes(block, codes);
            }
        })
    }

    /// A type with a scale in the last two bytes of every block.
    #[cfg(feature = "gguf")]
    fn blocks<const BYTES: usize>(
        &self,
        raw: &RawTensor<'_>,
        [rows, columns]: [usize; 2],
        factor: Option<f32>,
        unpack: impl Fn(&[u8; BYTES], &mut [i8; 256]) + Sync,
    ) -> Result<TernaryLinear, ModelError> {
        let blocks = raw.bytes.as_chunks::<BYTES>().0;
        let scale =
            |block: &[u8; BYTES]| half::f16::from_le_bytes([block[BYTES - 2], block[BYTES - 1]]).to_f32();
        // A block without weights has the scale 0; a tensor of such blocks has none.
        let expected = blocks.iter().map(scale).find(|&scale| scale != 0.0).unwrap_or(0.0);
        let total = self.checked_scale(raw, expected * factor.unwrap_or(1.0))?;
        let other = |block: &[u8; BYTES]| scale(block) != expected && scale(block) != 0.0;
        if let Some(block) = blocks.par_iter().position_first(other) {
            let (file, tensor, got) = (self.path.clone(), raw.name.clone(), scale(&blocks[block]));
            return Err(ModelError::BlockScale { file, tensor, block, expected, got });
        }
        let per_row = columns / raw.ty.block_elements();
        self.pack(raw, rows, columns, total, |row, out| {
            for (block, codes) in blocks[row * per_row..].iter().zip(out.as_chunks_mut().0) {
                unpack(block, codes);
                if scale(block) == 0.0 {
                    codes.fill(0);
                }
            }
        })
    }

    /// Bytes of four weights each: bits 2i and 2i + 1 of row r belong to row `i * rows / 4 + r`.
    #[cfg(feature = "safetensors")]
    fn unpack(
        &self,
        model: &SafetensorsModel,
        id: TensorId,
        [rows, columns]: [usize; 2],
        factor: impl Fn(f32) -> f32,
    ) -> Result<TernaryLinear, ModelError> {
        let name = self.name(id, Part::Weight);
        let (shape, bytes) = model.packed(&name)?;
        let file = || self.path.clone();
        if !rows.is_multiple_of(4) {
            return Err(ModelError::PackedRows { file: file(), tensor: name, got: rows });
        }
        let quarter = rows / 4;
        if shape != [quarter, columns] {
            let (expected, got) = (vec![quarter, columns], shape.to_vec());
            return Err(ModelError::TensorShape { file: file(), tensor: name, expected, got });
        }
        let stored = self.raw(id, Part::Scale)?;
        let scale = self.checked_scale(&stored, factor(self.scale(&stored)?))?;
        let raw = RawTensor { name, ..stored };
        self.pack(&raw, rows, columns, scale, |row, out| {
            let (shift, row) = (2 * (row / quarter), row % quarter);
            for (byte, code) in bytes[row * columns..].iter().zip(out) {
                *code = ((byte >> shift) & 3) as i8 - 1;
            }
        })
    }

    /// Makes float weights ternary.
    fn online(&self, raw: &RawTensor<'_>, shape: [usize; 2]) -> Result<TernaryLinear, ModelError> {
        let mean = (self.magnitudes(raw, shape)?.mean as f32).max(1e-5);
        let inverse = mean.recip();
        let scale = inverse.recip();
        // The product of code and scale is a number of the weights' own type.
        let scale = match raw.ty {
            TensorType::F16 => half::f16::from_f32(scale).to_f32(),
            TensorType::BF16 => half::bf16::from_f32(scale).to_f32(),
            _ => scale,
        };
        self.rounded(raw, shape, inverse, self.checked_scale(raw, scale)?)
    }

    /// `round(weight * inverse)`, between -1 and 1, with that scale.
    fn rounded(
        &self,
        raw: &RawTensor<'_>,
        [rows, columns]: [usize; 2],
        inverse: f32,
        scale: f32,
    ) -> Result<TernaryLinear, ModelError> {
        self.pack(raw, rows, columns, scale, |row, out| {
            let mut weights = vec![0.0; columns];
            // The same bytes have been converted before, for the magnitudes.
            if self.floats(raw, row, &mut weights).is_ok() {
                for (weight, code) in weights.iter().zip(out) {
                    *code = (weight * inverse).round_ties_even().clamp(-1.0, 1.0) as i8;
                }
            }
        })
    }

    fn magnitudes(&self, raw: &RawTensor<'_>, [rows, columns]: [usize; 2]) -> Result<Magnitudes, ModelError> {
        let row = |row| -> Result<(f64, f32, f32), ModelError> {
            let mut weights = vec![0.0; columns];
            self.floats(raw, row, &mut weights)?;
            Ok(weights.iter().map(|weight| weight.abs()).fold(
                (0.0, f32::MAX, 0.0),
                |(sum, least, most), x| {
                    (sum + f64::from(x), if x > 0.0 { least.min(x) } else { least }, most.max(x))
                },
            ))
        };
        // Added up in the order of the rows, so that the number of threads does not show.
        let rows_of = (0..rows).into_par_iter().map(row).collect::<Result<Vec<_>, _>>()?;
        let (sum, least, most) =
            rows_of.into_iter().fold((0.0, f32::MAX, 0.0_f32), |(sum, least, most), row| {
                (sum + row.0, least.min(row.1), most.max(row.2))
            });
        Ok(Magnitudes { mean: sum / (rows as f64 * columns as f64), only: (least == most).then_some(most) })
    }

    /// A row of float weights, refused if one is not finite.
    fn floats(&self, raw: &RawTensor<'_>, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let length = out.len() * raw.ty.block_bytes();
        let bytes = raw.bytes.get(row * length..(row + 1) * length).unwrap_or_default();
        quant::dequantize(raw.ty, bytes, out).map_err(|source| ModelError::Quant {
            file: self.path.clone(),
            tensor: raw.name.clone(),
            source,
        })?;
        self.refuse_non_finite(raw, row, out, f32::is_finite)
    }

    /// A tensor of one number.
    fn scale(&self, raw: &RawTensor<'_>) -> Result<f32, ModelError> {
        if raw.shape.iter().product::<usize>() != 1 {
            let (expected, got) = (vec![1], raw.shape.to_vec());
            let (file, tensor) = (self.path.clone(), raw.name.clone());
            return Err(ModelError::TensorShape { file, tensor, expected, got });
        }
        let mut value = [0.0];
        match raw.ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => {
                let quant =
                    |source| ModelError::Quant { file: self.path.clone(), tensor: raw.name.clone(), source };
                quant::dequantize(raw.ty, raw.bytes, &mut value).map_err(quant)?;
                self.checked_scale(raw, value[0])
            }
            _ => Err(self.element_type(raw, "type F32, F16 or BF16")),
        }
    }

    fn checked_scale(&self, raw: &RawTensor<'_>, got: f32) -> Result<f32, ModelError> {
        if got.is_finite() && got > 0.0 {
            return Ok(got);
        }
        Err(ModelError::TernaryScale { file: self.path.clone(), tensor: raw.name.clone(), got })
    }

    fn pack(
        &self,
        raw: &RawTensor<'_>,
        rows: usize,
        columns: usize,
        scale: f32,
        fill: impl Fn(usize, &mut [i8]) + Sync,
    ) -> Result<TernaryLinear, ModelError> {
        let packed = TernaryLinear::from_rows(rows, columns, scale, |row, out| {
            fill(row, out);
            Ok::<_, TernaryError>(())
        });
        let (file, tensor) = (&self.path, &raw.name);
        let packed = packed.map(|packed| packed.with_kernel(ByteKernel::of(self.isa)));
        packed.map_err(|source| ModelError::Ternary { file: file.clone(), tensor: tensor.clone(), source })
    }
}
