//! Tensor element types of ggml and their conversion to `f32`.
//!
//! Quantised types store rows as a sequence of blocks, each a few scales followed by packed integers; a row never
//! shares a block with the next one. Layouts are those of `ggml-common.h` and `ggml-quants.c` in the ggml repository,
//! little-endian throughout.

pub(crate) mod codes;
mod factors;
mod float;
mod k_quants;
mod legacy;
mod tensor_type;
pub(crate) mod ternary;

pub(crate) use factors::Factors;
pub use tensor_type::TensorType;

/// Why bytes could not be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The number of elements is no multiple of the block.
    #[error("{ty}: expected a multiple of {} elements, got {got}", ty.block_elements())]
    PartialBlock {
        /// The element type.
        ty: TensorType,
        /// Elements asked for.
        got: usize,
    },
    /// There are more or fewer bytes than the elements take.
    #[error("{ty}: expected {expected} bytes, got {got}")]
    ByteLength {
        /// The element type.
        ty: TensorType,
        /// Bytes that the elements asked for take.
        expected: u64,
        /// Bytes given.
        got: usize,
    },
}

/// Converts the blocks in `bytes` to `out.len()` values, in storage order; of `I2_S` the whole tensor, with its tail.
///
/// Not-a-number and infinite scales pass through to the values; loading a model refuses them.
///
/// # Errors
/// [`QuantError`] when `out` is no whole number of blocks or `bytes` does not hold exactly as many.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let expected = ty.bytes_for(out.len() as u64).ok_or(QuantError::PartialBlock { ty, got: out.len() })?;
    if bytes.len() as u64 != expected {
        return Err(QuantError::ByteLength { ty, expected, got: bytes.len() });
    }
    match ty {
        TensorType::F32 => float::f32(bytes, out),
        TensorType::F16 => float::f16(bytes, out),
        TensorType::BF16 => float::bf16(bytes, out),
        TensorType::Q8_0 => blocks(bytes, out, legacy::q8_0),
        TensorType::Q4_0 => blocks(bytes, out, legacy::q4_0),
        TensorType::Q4_1 => blocks(bytes, out, legacy::q4_1),
        TensorType::Q5_0 => blocks(bytes, out, legacy::q5_0),
        TensorType::Q5_1 => blocks(bytes, out, legacy::q5_1),
        TensorType::Q4_K => blocks(bytes, out, k_quants::q4_k),
        TensorType::Q5_K => blocks(bytes, out, k_quants::q5_k),
        TensorType::Q6_K => blocks(bytes, out, k_quants::q6_k),
        TensorType::TQ1_0 => blocks(bytes, out, ternary::tq1_0),
        TensorType::TQ2_0 => blocks(bytes, out, ternary::tq2_0),
        TensorType::I2_S => ternary::i2_s(bytes, out),
    }
    Ok(())
}

/// Applies the conversion of one block to all of them; the lengths have been checked.
fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    convert: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (bytes, _) = bytes.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, values) in bytes.iter().zip(out) {
        convert(block, values);
    }
}
