//! From masks and packed new values to rows of keys.

use fearless_simd::prelude::*;

/// A block of delta-coded keys: what [`deltallm_core::DeltaMatrix`] stores, by reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masked<'a, T> {
    /// The key before the first token, `[channels]`.
    pub(crate) frame: &'a [T],
    /// `[tokens, words]`: which channels each token transmits, 64 to a word.
    pub(crate) masks: &'a [u64],
    /// The transmitted values of all tokens, packed in order.
    pub(crate) values: &'a [T],
}

/// Elements between two rows of expanded keys: whole mask words.
pub(super) fn row_stride(channels: usize) -> usize {
    channels.next_multiple_of(64)
}

/// Writes each token's key to `out`, `[tokens, row_stride(channels)]`, value by value: for levels that cannot expand
/// in registers. A table of shuffles is slower there.
pub(super) fn expand_by_bits<T: Copy + Default>(block: Masked<T>, out: &mut [T]) {
    let channels = block.frame.len();
    let (words, stride) = (channels.div_ceil(64), row_stride(channels));
    let mut values = block.values.iter();
    for (token, masks) in block.masks.chunks_exact(words).enumerate() {
        match token {
            0 => {
                out[..channels].copy_from_slice(block.frame);
                out[channels..stride].fill(T::default());
            }
            _ => out.copy_within((token - 1) * stride..token * stride, token * stride),
        }
        for (word, row) in masks.iter().zip(out[token * stride..].chunks_mut(64)) {
            let mut rest = *word;
            while rest != 0 {
                if let Some(value) = values.next() {
                    row[rest.trailing_zeros() as usize] = *value;
                }
                rest &= rest - 1;
            }
        }
    }
}

/// The same with the key in registers and one expand instruction per register and token.
#[inline(always)]
pub(super) fn expand_in_registers<S: Simd, V: SimdBase<S>>(
    simd: S,
    block: Masked<V::Element>,
    out: &mut [V::Element],
) {
    let channels = block.frame.len();
    let (words, stride) = (channels.div_ceil(64), row_stride(channels));
    let tokens = block.masks.len() / words;
    let low = |bits: usize| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    for first in (0..stride).step_by(V::LEN) {
        let (word, shift) = (first / 64, first % 64);
        let mut key = padded::<S, V>(simd, block.frame.get(first..).unwrap_or(&[]));
        // Where the values of the token begin that belong to this register.
        let mut start = 0;
        for token in 0..tokens {
            let masks = &block.masks[token * words..][..words];
            let before: u32 = masks[..word].iter().map(|mask| mask.count_ones()).sum();
            let before = before + (masks[word] & low(shift)).count_ones();
            let values = &block.values[start + before as usize..];
            start += masks.iter().map(|mask| mask.count_ones() as usize).sum::<usize>();
            let mask = V::Mask::from_bitmask(simd, masks[word] >> shift & low(V::LEN));
            let values = match values.get(..V::LEN) {
                Some(values) => V::from_slice(simd, values),
                None => padded::<S, V>(simd, values),
            };
            key = values.expand_merge(mask, key);
            key.store_slice(&mut out[token * stride + first..][..V::LEN]);
        }
    }
}

/// `x`, shorter than a vector or not, and zeros.
#[inline(always)]
fn padded<S: Simd, V: SimdBase<S>>(simd: S, x: &[V::Element]) -> V {
    V::from_fn(simd, |i| x.get(i).copied().unwrap_or_default())
}
