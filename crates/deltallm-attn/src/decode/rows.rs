//! How a vector of f32 is made of each form in which rows are stored.

use deltallm_core::internal::{FloatRows, GROUP};
use deltallm_simd::{convert::finite_f16_to_f32, fearless_simd::prelude::*};
use half::{bf16, f16};

use super::{
    decode_simd::{DecodeSimd, width},
    expand::grow,
};

/// Rows that can be read vector by vector.
pub(crate) trait VectorRows: Copy {
    /// Registers that its conversions occupy all the time, with constants.
    const HELD: usize = 0;

    /// One row.
    type Row: VectorRow;

    /// The first `channels` channels of row `index`.
    fn row(self, index: usize, channels: usize) -> Self::Row;
}

/// A row in its stored form.
pub(crate) trait VectorRow: Copy {
    /// The channels `vector * LEN .. (vector + 1) * LEN`.
    fn vector<S: DecodeSimd>(self, simd: S, vector: usize) -> S::f32s;
}

impl<'a, T: Number> VectorRows for FloatRows<'a, T> {
    type Row = &'a [T];

    #[inline(always)]
    fn row(self, index: usize, channels: usize) -> &'a [T] {
        &self.data[index * self.stride..][..channels]
    }
}

impl<T: Number> VectorRow for &[T] {
    #[inline(always)]
    fn vector<S: DecodeSimd>(self, simd: S, vector: usize) -> S::f32s {
        T::vector(simd, &self[vector * width::<S>()..][..width::<S>()])
    }
}

/// A plain number type.
pub(crate) trait Number: Copy + Default {
    /// One vector of them as f32.
    fn vector<S: DecodeSimd>(simd: S, x: &[Self]) -> S::f32s;
}

impl Number for f32 {
    #[inline(always)]
    fn vector<S: DecodeSimd>(simd: S, x: &[Self]) -> S::f32s {
        S::f32s::from_slice(simd, x)
    }
}

impl Number for i8 {
    #[inline(always)]
    fn vector<S: DecodeSimd>(simd: S, x: &[Self]) -> S::f32s {
        simd.i8s(x)
    }
}

impl Number for f16 {
    #[inline(always)]
    fn vector<S: DecodeSimd>(simd: S, x: &[Self]) -> S::f32s {
        simd.f16s(x)
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn vector<S: DecodeSimd>(simd: S, x: &[Self]) -> S::f32s {
        simd.bf16s(x)
    }
}

/// [`Int8Rows`](deltallm_core::internal::Int8Rows) with their scales as f32.
#[derive(Clone, Copy)]
pub(crate) struct Int8Kernel<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f32],
}

impl<'a> VectorRows for Int8Kernel<'a> {
    type Row = Self;

    #[inline(always)]
    fn row(self, index: usize, channels: usize) -> Self {
        let groups = channels.div_ceil(GROUP);
        let (codes, scales) = (&self.codes[index * channels..], &self.scales[index * groups..]);
        Self { codes: &codes[..channels], scales: &scales[..groups] }
    }
}

impl VectorRow for Int8Kernel<'_> {
    #[inline(always)]
    fn vector<S: DecodeSimd>(self, simd: S, vector: usize) -> S::f32s {
        let first = vector * width::<S>();
        simd.i8s(&self.codes[first..][..width::<S>()]) * self.scales[first / GROUP]
    }
}

/// [`Int4Rows`](deltallm_core::internal::Int4Rows) with their scales as f32.
#[derive(Clone, Copy)]
pub(crate) struct Int4Kernel<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [f32],
}

impl<'a> VectorRows for Int4Kernel<'a> {
    /// The mask of a nibble, the code of zero and the scale.
    const HELD: usize = 3;

    type Row = Self;

    #[inline(always)]
    fn row(self, index: usize, channels: usize) -> Self {
        let (bytes, groups) = (channels / 2, channels.div_ceil(GROUP));
        let (codes, scales) = (&self.codes[index * bytes..], &self.scales[index * groups..]);
        Self { codes: &codes[..bytes], scales: &scales[..groups] }
    }
}

impl VectorRow for Int4Kernel<'_> {
    #[inline(always)]
    fn vector<S: DecodeSimd>(self, simd: S, vector: usize) -> S::f32s {
        let (group, channel) = (vector * width::<S>() / GROUP, vector * width::<S>() % GROUP);
        let codes = &self.codes[group * (GROUP / 2)..];
        let half = codes.len().min(GROUP / 2);
        let numbers = if width::<S>() <= half {
            simd.nibbles(&codes[channel % half..][..width::<S>()], channel >= half)
        } else {
            // Vectors of 16 channels, and as many are left: rows are read in place for multiples of 16 channels alone.
            simd.nibbles(&halves(codes)[..width::<S>()], false)
        };
        numbers * self.scales[group]
    }
}

/// The 16 codes of a last group that is half as long as the others, a byte each.
#[inline(always)]
fn halves(codes: &[u8]) -> [u8; GROUP / 2] {
    let mut bytes = [0; GROUP / 4];
    bytes.copy_from_slice(codes);
    let codes = u64::from_le_bytes(bytes);
    let nibbles = |codes: u64| (codes & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes();
    let mut halves = [0; GROUP / 2];
    halves[..GROUP / 4].copy_from_slice(&nibbles(codes));
    halves[GROUP / 4..].copy_from_slice(&nibbles(codes >> 4));
    halves
}

/// Scales as f32.
#[inline(always)]
pub(crate) fn scales_to_f32<'a, S: DecodeSimd>(
    simd: S,
    stored: &[f16],
    scales: &'a mut Vec<f32>,
) -> &'a [f32] {
    grow(scales, stored.len());
    let whole = stored.len() / width::<S>() * width::<S>();
    for (x, out) in stored.chunks_exact(width::<S>()).zip(scales.chunks_exact_mut(width::<S>())) {
        simd.f16s(x).store_slice(out);
    }
    for (x, out) in stored[whole..].iter().zip(&mut scales[whole..]) {
        *out = finite_f16_to_f32(*x);
    }
    &scales[..stored.len()]
}
