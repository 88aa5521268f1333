//! The forms in which rows of keys and values are stored, and how a vector of f32 is made of each.

use half::{bf16, f16};

use super::lanes::Lanes;

/// Adjacent rows of one kv head, `[rows, head_dim]`, as they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoredRows<'a> {
    /// binary32.
    F32(Strided<'a, f32>),
    /// binary16.
    F16(Strided<'a, f16>),
    /// bfloat16.
    Bf16(Strided<'a, bf16>),
}

/// Rows of plain numbers that start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
}

/// Rows that can be read vector by vector.
pub(super) trait Rows: Copy {
    /// One row.
    type Row: Row;

    /// The first `channels` channels of row `index`.
    fn row(self, index: usize, channels: usize) -> Self::Row;
}

/// A row in its stored form.
pub(super) trait Row: Copy {
    /// The channels `vector * LEN .. (vector + 1) * LEN`.
    fn vector<S: Lanes>(self, simd: S, vector: usize) -> S::f32s;

    /// Asks for the row's memory.
    fn prefetch<S: Lanes>(self, simd: S);
}

impl<'a, T: Number> Rows for Strided<'a, T> {
    type Row = &'a [T];

    #[inline(always)]
    fn row(self, index: usize, channels: usize) -> &'a [T] {
        &self.data[index * self.stride..][..channels]
    }
}

impl<T: Number> Row for &[T] {
    #[inline(always)]
    fn vector<S: Lanes>(self, simd: S, vector: usize) -> S::f32s {
        T::vector(simd, &self[vector * lanes::<S>()..][..lanes::<S>()])
    }

    #[inline(always)]
    fn prefetch<S: Lanes>(self, simd: S) {
        self.chunks(64 / size_of::<T>()).for_each(|line| simd.prefetch(line));
    }
}

/// A plain number type.
pub(super) trait Number: Copy + Default {
    /// One vector of them as f32.
    fn vector<S: Lanes>(simd: S, x: &[Self]) -> S::f32s;

    fn to_f32(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn vector<S: Lanes>(simd: S, x: &[Self]) -> S::f32s {
        use fearless_simd::SimdBase;
        S::f32s::from_slice(simd, x)
    }

    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for f16 {
    #[inline(always)]
    fn vector<S: Lanes>(simd: S, x: &[Self]) -> S::f32s {
        simd.f16s(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn vector<S: Lanes>(simd: S, x: &[Self]) -> S::f32s {
        simd.bf16s(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// f32 lanes of a vector.
#[inline(always)]
pub(super) const fn lanes<S: Lanes>() -> usize {
    use fearless_simd::SimdBase;
    S::f32s::LEN
}
