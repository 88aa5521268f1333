//! The list of the forms in which rows are stored. Another one is a file beside [`int8`](super::int8), a line in each of these, and a
//! kernel in attention that reads it.

use std::ops::Range;

use half::{bf16, f16};

use super::{
    coded_page::Widths,
    float::{self, FloatRows},
    int4::{self, Int4Rows},
    int8::{self, Int8Rows},
};
use crate::{element::ElementType, kv_store::KvStore};

/// How the numbers of a row are held.
///
/// ```
/// use deltallm_core::{ElementType, internal::RowFormat};
///
/// assert_eq!(RowFormat::from(ElementType::F16).row_bytes(64), 128);
/// assert_eq!(RowFormat::Int8.row_bytes(64), 64 + 2 * 2); // two groups, each with its scale
/// assert_eq!(RowFormat::Int4.row_bytes(64), 32 + 2 * 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// One after the other in a float type.
    Float(ElementType),
    /// 8-bit codes with an f16 scale per [`GROUP`](super::GROUP) channels.
    Int8,
    /// 4-bit codes with an f16 scale per [`GROUP`](super::GROUP) channels.
    Int4,
}

impl From<ElementType> for RowFormat {
    fn from(element: ElementType) -> Self {
        Self::Float(element)
    }
}

impl RowFormat {
    /// How a store holds far values, and far keys where it has no deltas.
    pub fn of(store: KvStore) -> Self {
        match store {
            KvStore::Int8 => Self::Int8,
            KvStore::Compact => Self::Int4,
            float => Self::Float(float.exact()),
        }
    }

    /// Bytes of a row of `channels` numbers.
    pub fn row_bytes(self, channels: usize) -> usize {
        self.widths(channels).row_bytes()
    }

    /// How a row is made up; numbers count as codes.
    fn widths(self, channels: usize) -> Widths {
        match self {
            Self::Float(element) => Widths { codes: channels.saturating_mul(element.bytes()), scales: 0 },
            Self::Int8 => int8::widths(channels),
            Self::Int4 => int4::widths(channels),
        }
    }

    /// The float type whose numbers fit: a scale is an f16.
    pub fn takes(self) -> ElementType {
        match self {
            Self::Float(element) => element,
            Self::Int8 | Self::Int4 => ElementType::F16,
        }
    }

    /// Bytes of a page of `tokens` rows.
    pub(super) fn page_bytes(self, tokens: usize, channels: usize) -> usize {
        self.widths(channels).page_bytes(tokens)
    }

    /// Writes row `at`, which has been checked, of a page with room for `tokens`.
    pub(super) fn write(self, page: &mut [u8], tokens: usize, at: usize, row: &[f32]) {
        match self {
            Self::Float(element) => float::write(element, page, at, row),
            Self::Int8 => int8::write(page, tokens, at, row),
            Self::Int4 => int4::write(page, tokens, at, row),
        }
    }

    /// Copies the first `rows` rows of a page with room for `tokens` to another one.
    pub(super) fn copy_rows(self, from: &[u8], to: &mut [u8], tokens: usize, channels: usize, rows: usize) {
        let widths = self.widths(channels);
        let second = widths.scales_at(tokens).min(from.len());
        for (start, width) in [(0, widths.codes), (second, widths.scales)] {
            let bytes = start..start + rows * width;
            to[bytes.clone()].copy_from_slice(&from[bytes]);
        }
    }

    /// The name in a snapshot.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Float(element) => element.name(),
            Self::Int8 => "8 bits",
            Self::Int4 => "4 bits",
        }
    }

    /// Rows of a page with room for `tokens`, as they are held.
    pub(super) fn view(
        self,
        page: &[u8],
        tokens: usize,
        channels: usize,
        rows: Range<usize>,
    ) -> StoredRows<'_> {
        match self {
            Self::Float(ElementType::F32) => StoredRows::F32(FloatRows::of_page(page, channels, rows)),
            Self::Float(ElementType::F16) => StoredRows::F16(FloatRows::of_page(page, channels, rows)),
            Self::Float(ElementType::Bf16) => StoredRows::Bf16(FloatRows::of_page(page, channels, rows)),
            Self::Int8 => StoredRows::Int8(Int8Rows::of_page(page, tokens, channels, rows)),
            Self::Int4 => StoredRows::Int4(Int4Rows::of_page(page, tokens, channels, rows)),
        }
    }
}

/// Adjacent rows of one kv head, as they are stored: what kernels match on.
#[derive(Debug, Clone, Copy)]
pub enum StoredRows<'a> {
    /// binary32.
    F32(FloatRows<'a, f32>),
    /// binary16.
    F16(FloatRows<'a, f16>),
    /// bfloat16.
    Bf16(FloatRows<'a, bf16>),
    /// 8-bit codes.
    Int8(Int8Rows<'a>),
    /// 4-bit codes.
    Int4(Int4Rows<'a>),
}

impl StoredRows<'_> {
    /// Appends rows of a page to `out` as f32, without a center.
    pub(super) fn gather(&self, channels: usize, out: &mut Vec<f32>) {
        match self {
            Self::F32(rows) => out.extend_from_slice(rows.data),
            Self::F16(rows) => float::gather(rows.data, out),
            Self::Bf16(rows) => float::gather(rows.data, out),
            Self::Int8(rows) => rows.gather(channels, out),
            Self::Int4(rows) => rows.gather(channels, out),
        }
    }
}
