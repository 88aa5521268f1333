//! The forms in which rows of keys and values are stored, as decoding reads them.

use std::ops::Range;

use deltallm_core::{GROUP, PagedRows, RowsPage};
use half::{bf16, f16};

/// Channels are padded to a multiple of this, the longest vector of any instruction set.
pub(crate) const CHANNELS: usize = 16;

/// Adjacent rows of one kv head, `[rows, head_dim]`, as they are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StoredRows<'a> {
    /// binary32.
    F32(Strided<'a, f32>),
    /// binary16.
    F16(Strided<'a, f16>),
    /// bfloat16.
    Bf16(Strided<'a, bf16>),
    /// 8-bit codes.
    Int8(Int8Rows<'a>),
    /// 4-bit codes; rows of whole groups only.
    Int4(Int4Rows<'a>),
}

/// Rows of plain numbers that start `stride` elements apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strided<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) stride: usize,
}

/// Rows of 8-bit codes, see [`deltallm_core::RowsPage::Int8`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int8Rows<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) scales: &'a [f16],
}

/// Rows of 4-bit codes, see [`deltallm_core::RowsPage::Int4`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Int4Rows<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [f16],
}

impl<'a> StoredRows<'a> {
    /// The first of `tokens`, as many as lie adjacent in a page, and how many these are. `None` for forms that decoding has no
    /// kernel for.
    pub(crate) fn of_page(rows: &'a PagedRows, tokens: Range<usize>) -> Option<(Self, usize)> {
        let stride = rows.channels();
        let first = tokens.start % rows.page_tokens();
        let count = tokens.len().min(rows.page_tokens() - first);
        let of = |width: usize| first * width..(first + count) * width;
        let groups = stride.div_ceil(GROUP);
        let stored = match rows.page(tokens.start / rows.page_tokens())? {
            RowsPage::F32(page) => Self::F32(Strided { data: &page[of(stride)], stride }),
            RowsPage::F16(page) => Self::F16(Strided { data: &page[of(stride)], stride }),
            RowsPage::Bf16(page) => Self::Bf16(Strided { data: &page[of(stride)], stride }),
            RowsPage::Int8 { codes, scales } => {
                Self::Int8(Int8Rows { codes: &codes[of(stride)], scales: &scales[of(groups)] })
            }
            // Vectors would straddle a shorter last group.
            RowsPage::Int4 { codes, scales } if stride.is_multiple_of(GROUP) => {
                Self::Int4(Int4Rows { codes: &codes[of(stride / 2)], scales: &scales[of(groups)] })
            }
            _ => return None,
        };
        stride.is_multiple_of(CHANNELS).then_some((stored, count))
    }

    /// Rows of f32 that start `stride` numbers apart, of `channels` channels.
    pub(crate) fn of_f32s(data: &'a [f32], stride: usize, channels: usize) -> Option<Self> {
        channels.is_multiple_of(CHANNELS).then_some(Self::F32(Strided { data, stride }))
    }
}
