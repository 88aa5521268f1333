//! The list of the forms in which rows are stored. Another one is a file beside [`int8`](super::int8), a line in each of these, and a
//! kernel in attention that reads it.

use std::ops::Range;

use deltallm_simd::Isa;
use half::{bf16, f16};

use super::{
    float::{FloatPage, FloatRows},
    int4::{Int4Page, Int4Rows},
    int8::{Int8Page, Int8Rows},
};
use crate::{
    budget::Reservation, buffer::FloatBuffer, element::ElementType, error::CoreError, store::KvStore,
};

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
        match self {
            Self::Float(element) => FloatPage::row_bytes(element, channels),
            Self::Int8 => Int8Page::row_bytes(channels),
            Self::Int4 => Int4Page::row_bytes(channels),
        }
    }

    /// The float type whose numbers fit: a scale is an f16.
    pub fn takes(self) -> ElementType {
        match self {
            Self::Float(element) => element,
            Self::Int8 | Self::Int4 => ElementType::F16,
        }
    }

    /// An empty page with room for `rows` rows.
    pub(super) fn page(self, rows: usize, channels: usize) -> Page {
        match self {
            Self::Float(element) => Page::Float(FloatPage::with_capacity(element, rows, channels)),
            Self::Int8 => Page::Int8(Int8Page::with_capacity(rows, channels)),
            Self::Int4 => Page::Int4(Int4Page::with_capacity(rows, channels)),
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

/// A page with room for its tokens.
#[derive(Debug)]
pub(super) enum Page {
    Float(FloatPage),
    Int8(Int8Page),
    Int4(Int4Page),
}

impl Page {
    /// Appends a row that has been checked.
    pub(super) fn push(&mut self, row: &[f32], isa: Isa) {
        match self {
            Self::Float(page) => page.push(row),
            Self::Int8(page) => page.push(row, isa),
            Self::Int4(page) => page.push(row, isa),
        }
    }

    /// Keeps the first `rows` rows.
    pub(super) fn truncate(&mut self, rows: usize, channels: usize) {
        match self {
            Self::Float(page) => page.truncate(rows, channels),
            Self::Int8(page) => page.truncate(rows, channels),
            Self::Int4(page) => page.truncate(rows, channels),
        }
    }

    /// Appends rows to `out` as f32.
    pub(super) fn gather(&self, rows: Range<usize>, channels: usize, out: &mut Vec<f32>) {
        match self {
            Self::Float(page) => out.extend_from_slice(page.read(rows, channels, &mut Vec::new())),
            Self::Int8(page) => page.read(rows, channels, out),
            Self::Int4(page) => page.read(rows, channels, out),
        }
    }

    /// Rows as f32: borrowed where they already are, else converted into `scratch`.
    pub(super) fn read<'a>(
        &'a self,
        rows: Range<usize>,
        channels: usize,
        scratch: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        if let Self::Float(page) = self {
            return page.read(rows, channels, scratch);
        }
        scratch.clear();
        self.gather(rows, channels, scratch);
        scratch
    }

    /// Rows as they are held.
    pub(super) fn view(&self, rows: Range<usize>, channels: usize) -> StoredRows<'_> {
        let of = rows.start * channels..rows.end * channels;
        match self {
            Self::Float(FloatPage(FloatBuffer::F32(data))) => {
                StoredRows::F32(FloatRows { data: &data[of], stride: channels })
            }
            Self::Float(FloatPage(FloatBuffer::F16(data))) => {
                StoredRows::F16(FloatRows { data: &data[of], stride: channels })
            }
            Self::Float(FloatPage(FloatBuffer::Bf16(data))) => {
                StoredRows::Bf16(FloatRows { data: &data[of], stride: channels })
            }
            Self::Int8(page) => StoredRows::Int8(page.view(rows, channels)),
            Self::Int4(page) => StoredRows::Int4(page.view(rows, channels)),
        }
    }

    /// Checks that every number can be stored in `element`; rows of codes stay as they are.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`].
    pub(super) fn check_narrow(&self, element: ElementType, channels: usize) -> Result<(), CoreError> {
        match self {
            Self::Float(page) => page.check_narrow(element, channels),
            Self::Int8(_) | Self::Int4(_) => Ok(()),
        }
    }

    /// Converts checked numbers to a narrower float type; rows of codes stay as they are.
    pub(super) fn narrow(&mut self, element: ElementType, reservation: &mut Reservation) {
        if let Self::Float(page) = self {
            page.narrow(element, reservation);
        }
    }
}
