//! From masks and packed new values to rows of keys.

use deltallm_simd::fearless_simd::prelude::*;
use half::slice::HalfFloatSliceExt;

/// A block of delta-coded keys: what [`deltallm_core::DeltaMatrix`] stores, by reference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masked<'a, T> {
    /// The key before the first token, `[channels]`.
    pub(crate) frame: &'a [T],
    /// `[tokens, words]`: which channels each token transmits, 64 to a word.
    pub(crate) masks: &'a [u64],
    /// What all tokens transmit, packed in order: new values, or what codes of 8 bits change by.
    pub(crate) values: &'a [T],
}

impl<T> Masked<'_, T> {
    /// Tokens of the block.
    pub(crate) fn tokens(&self) -> usize {
        self.masks.len() / self.frame.len().div_ceil(64)
    }

    /// The first `tokens` tokens of the block.
    pub(crate) fn first(self, tokens: usize) -> Self {
        let words = self.frame.len().div_ceil(64);
        Self { masks: &self.masks[..tokens * words], ..self }
    }

    /// Makes room for the keys and returns the elements from one to the next: whole mask words, which also covers the
    /// padding of the channels.
    pub(crate) fn room<U: Copy + Default>(&self, keys: &mut Vec<U>) -> usize {
        let stride = row_stride(self.frame.len());
        grow(keys, self.tokens() * stride);
        stride
    }
}

impl<'a, T> Masked<'a, T>
where
    [T]: HalfFloatSliceExt,
{
    pub(crate) fn bits(self) -> Masked<'a, u16> {
        Masked {
            frame: self.frame.reinterpret_cast(),
            masks: self.masks,
            values: self.values.reinterpret_cast(),
        }
    }
}

/// Makes room for at least `len` numbers.
pub(crate) fn grow<T: Copy + Default>(scratch: &mut Vec<T>, len: usize) {
    if scratch.len() < len {
        scratch.resize(len, T::default());
    }
}

/// A number in which keys are delta-coded.
pub(crate) trait Coded: Copy + Default {
    /// The key after `key`, in one vector: what is transmitted stands in `sent` where `mask` is set.
    fn next<S: Simd, V: SimdBase<S, Element = Self>>(simd: S, mask: V::Mask, sent: V, key: V) -> V;
}

/// Codes of 8 bits transmit what they change by.
impl Coded for i8 {
    #[inline(always)]
    fn next<S: Simd, V: SimdBase<S, Element = Self>>(simd: S, mask: V::Mask, sent: V, key: V) -> V {
        key + mask.select(sent, V::splat(simd, 0))
    }
}

/// 16-bit floats, by their bits, transmit themselves.
impl Coded for u16 {
    #[inline(always)]
    fn next<S: Simd, V: SimdBase<S, Element = Self>>(_: S, mask: V::Mask, sent: V, key: V) -> V {
        mask.select(sent, key)
    }
}

impl Coded for f32 {
    #[inline(always)]
    fn next<S: Simd, V: SimdBase<S, Element = Self>>(_: S, mask: V::Mask, sent: V, key: V) -> V {
        mask.select(sent, key)
    }
}

/// Elements between two rows of expanded keys: whole mask words.
pub(crate) fn row_stride(channels: usize) -> usize {
    channels.next_multiple_of(64)
}

/// Writes each token's key to `out`, `[tokens, row_stride(channels)]`, for instruction sets that cannot expand in registers: the
/// values go to their places one by one, and then a vector at a time takes them and the key before.
/// (Values written into a copy of the key before would be read again before they had left the store buffer.)
#[inline(always)]
pub(crate) fn expand_by_bits<S: Simd, V: SimdBase<S, Element: Coded>>(
    simd: S,
    block: Masked<V::Element>,
    out: &mut [V::Element],
) {
    let channels = block.frame.len();
    let (words, stride) = (channels.div_ceil(64), row_stride(channels));
    let mut values = block.values.iter();
    for (masks, row) in block.masks.chunks_exact(words).zip(out.chunks_exact_mut(stride)) {
        for (word, row) in masks.iter().zip(row.chunks_exact_mut(64)) {
            let mut rest = *word;
            while rest != 0 {
                if let Some(value) = values.next() {
                    row[rest.trailing_zeros() as usize] = *value;
                }
                rest &= rest - 1;
            }
        }
    }
    for first in (0..stride).step_by(V::LEN) {
        let mut key = padded::<S, V>(simd, block.frame.get(first..).unwrap_or(&[]));
        for (masks, row) in block.masks.chunks_exact(words).zip(out.chunks_exact_mut(stride)) {
            let row = &mut row[first..][..V::LEN];
            let mask = V::Mask::from_bitmask(simd, masks[first / 64] >> (first % 64) & low_bits(V::LEN));
            key = V::Element::next(simd, mask, V::from_slice(simd, row), key);
            key.store_slice(row);
        }
    }
}

/// A mask of the lowest `count` bits, 1 to 64 of them.
#[inline(always)]
pub(crate) fn low_bits(count: usize) -> u64 {
    u64::MAX >> (64 - count)
}

/// `x`, shorter than a vector or not, and zeros.
#[inline(always)]
pub(crate) fn padded<S: Simd, V: SimdBase<S>>(simd: S, x: &[V::Element]) -> V {
    if let Some(whole) = x.get(..V::LEN) {
        return V::from_slice(simd, whole);
    }
    // Not `from_fn`: 64 elements chosen one by one are code that takes minutes to compile.
    let (mut row, count) = ([V::Element::default(); 64], x.len().min(V::LEN));
    row[..count].copy_from_slice(&x[..count]);
    V::from_slice(simd, &row[..V::LEN])
}
