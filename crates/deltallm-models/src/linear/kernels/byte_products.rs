//! Products of lines of codes with activations, for every instruction set: what quantised and ternary layers share.
//!
//! A [line](super::Line) holds 16 rows by four columns of codes, a byte each, and meets the activations of these columns, a [`Quad`].
//! Every row has a sum of its own. Sums are integers, so all instruction sets get the same ones.

use deltallm_simd::fearless_simd::{f32x16, i32x16, prelude::*, u8x64};

use super::{Line, PANEL, Quad, RowFactors};

/// Instructions that multiply lines of codes with quads. Those with `BITS` are for codes of at most so many bits: 4, 5, 6 or 8. Codes
/// are not negative.
pub(crate) trait ByteProducts: Copy {
    /// The instruction set of the vectors.
    type Simd: Simd;
    /// A line of codes as they are multiplied.
    type Codes: Copy;
    /// A sum for each of 16 rows, on the way.
    type Sums: Copy;

    /// Whether codes of 8 bits are multiplied as signed bytes: as what they are less 128.
    const SIGNED: bool;

    /// How often lines of codes of at most 2 may be [added](Self::add) between [`begin`](Self::begin) and [`total`](Self::total).
    /// The largest number stands for sums in 32 bits, to which any codes may be added as long as these hold them.
    const SMALL_LINES: usize;

    fn simd(self) -> Self::Simd;

    /// From the bytes of a line.
    fn codes<const BITS: u32>(self, bytes: u8x64<Self::Simd>) -> Self::Codes;

    /// Sums without products yet. `start` is to be added, either here or in [`total`](Self::total).
    fn begin(self, start: i32) -> Self::Sums;

    /// Adds the products of four columns. Called at most 8 times between `begin` and `total`, or as [`SMALL_LINES`](Self::SMALL_LINES)
    /// says.
    fn add<const BITS: u32>(self, sums: Self::Sums, codes: Self::Codes, quad: Quad) -> Self::Sums;

    /// The sums.
    fn total<const BITS: u32>(self, sums: Self::Sums, start: i32) -> i32x16<Self::Simd>;

    /// A factor for each row.
    fn widen(self, factors: &RowFactors) -> f32x16<Self::Simd>;
}

/// The bytes of a line.
#[inline(always)]
pub(crate) fn bytes_of<S: Simd>(simd: S, line: &Line) -> u8x64<S> {
    u8x64::from_slice(simd, &line.0)
}

/// Sums as an array.
#[inline(always)]
pub(crate) fn rows_of<S: Simd>(sums: i32x16<S>) -> [i32; PANEL] {
    sums.into()
}
