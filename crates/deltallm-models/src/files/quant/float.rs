//! The unquantised types: F32, F16 and BF16.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks().0.iter().zip(out) {
        *value = f32::from_le_bytes(*bytes);
    }
}

/// Converts through a small buffer, because bytes in a file need not be aligned and the conversion instruction of the
/// processor works on slices.
pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    let mut buffer = [f16::ZERO; 64];
    for (bytes, out) in bytes.chunks(2 * buffer.len()).zip(out.chunks_mut(buffer.len())) {
        let buffer = &mut buffer[..out.len()];
        for (bytes, value) in bytes.as_chunks().0.iter().zip(buffer.iter_mut()) {
            *value = f16::from_le_bytes(*bytes);
        }
        buffer.convert_to_f32_slice(out);
    }
}

pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, value) in bytes.as_chunks().0.iter().zip(out) {
        *value = bf16::from_le_bytes(*bytes).to_f32();
    }
}

/// The `f16` stored at `offset` of a block.
#[inline(always)]
pub(super) fn scale<const BYTES: usize>(block: &[u8; BYTES], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}
