//! The pages of a store: how their rows are held, and how many bytes they take.

use super::forms::RowFormat;
use crate::{budget::StoreBytes, element::ElementType, piece::Piece};

/// How the first page of a centered store is held. A cut within it then leaves no trace, and the first keys, which are often the most
/// important, are off by less.
const FIRST_FORMAT: RowFormat = RowFormat::Float(ElementType::F16);

/// What the pages of a store have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) channels: usize,
    pub(crate) format: RowFormat,
    pub(crate) page_tokens: usize,
    /// Whether rows of 8 bits are [centered](super::PagedRows::centered).
    pub(crate) centered: bool,
}

impl Layout {
    /// Bytes of so many pages, in a table with so many slots.
    pub(crate) fn bytes(&self, pages: usize, slots: usize) -> StoreBytes {
        let page = Piece::data_bytes(self.page_bytes(self.format));
        let table = slots.saturating_mul(size_of::<Piece>());
        StoreBytes {
            data: pages.saturating_mul(page),
            table: table.saturating_add(pages.saturating_mul(Piece::OVERHEAD)),
        }
    }

    /// The same of a store that may be centered: with its first page, should it be among them, and with a center.
    pub(crate) fn bytes_from(&self, pages: usize, slots: usize, [first, center]: [bool; 2]) -> StoreBytes {
        let bytes = self.bytes(pages, slots);
        if !self.has_center() {
            return bytes;
        }
        let [first_page, others] =
            [FIRST_FORMAT, self.format].map(|format| Piece::data_bytes(self.page_bytes(format)));
        let data = if first { bytes.data.saturating_add(first_page) - others } else { bytes.data };
        StoreBytes { data, table: bytes.table.saturating_add(self.center_bytes(center)) }
    }

    /// Bytes of a center and of a row less it, or of none.
    pub(super) fn center_bytes(&self, held: bool) -> usize {
        if held { self.channels.saturating_mul(2 * size_of::<f32>()) } else { 0 }
    }

    pub(super) fn page_bytes(&self, format: RowFormat) -> usize {
        format.page_bytes(self.page_tokens, self.channels)
    }

    pub(super) fn has_center(&self) -> bool {
        self.centered && self.format == RowFormat::Int8
    }

    /// How the rows of page `number` are held.
    pub(super) fn format_of(&self, number: usize) -> RowFormat {
        if number == 0 && self.has_center() { FIRST_FORMAT } else { self.format }
    }
}
