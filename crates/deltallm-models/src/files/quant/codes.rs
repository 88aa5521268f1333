//! Blocks taken apart and not multiplied out: codes and scales, for products with packed weights.

use super::{Factors, TensorType, k_quants, legacy};

/// Writes the code of every element of `bytes`, and the factors of every group: 16 elements of `Q6_K`, 32 of all others.
/// Codes are not negative. For a type that has no codes and factors nothing is written.
pub(crate) fn unpack(ty: TensorType, bytes: &[u8], codes: &mut [u8], factors: &mut [Factors]) {
    match ty {
        TensorType::Q8_0 => blocks(bytes, codes, factors, legacy::q8_0_codes),
        TensorType::Q4_0 => blocks(bytes, codes, factors, legacy::q4_0_codes),
        TensorType::Q4_1 => blocks(bytes, codes, factors, legacy::q4_1_codes),
        TensorType::Q5_0 => blocks(bytes, codes, factors, legacy::q5_0_codes),
        TensorType::Q5_1 => blocks(bytes, codes, factors, legacy::q5_1_codes),
        TensorType::Q4_K => blocks(bytes, codes, factors, k_quants::q4_k_codes),
        TensorType::Q5_K => blocks(bytes, codes, factors, k_quants::q5_k_codes),
        TensorType::Q6_K => blocks(bytes, codes, factors, k_quants::q6_k_codes),
        _ => {}
    }
}

fn blocks<const BYTES: usize, const ELEMENTS: usize, const GROUPS: usize>(
    bytes: &[u8],
    codes: &mut [u8],
    factors: &mut [Factors],
    unpack: impl Fn(&[u8; BYTES], &mut [u8; ELEMENTS]) -> [Factors; GROUPS],
) {
    let outputs = codes.as_chunks_mut::<ELEMENTS>().0.iter_mut().zip(factors.as_chunks_mut::<GROUPS>().0);
    for (block, (codes, factors)) in bytes.as_chunks::<BYTES>().0.iter().zip(outputs) {
        *factors = unpack(block, codes);
    }
}
