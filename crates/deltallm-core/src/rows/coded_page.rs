//! How a page of codes lies: the codes of its rows, and from an even byte on their scales.

use std::ops::Range;

use half::f16;

/// Bytes of a row's codes, and of its scales; rows without scales are all codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    pub(super) codes: usize,
    pub(super) scales: usize,
}

impl Widths {
    pub(super) fn row_bytes(self) -> usize {
        self.codes.saturating_add(self.scales)
    }

    /// Bytes of a page of `tokens` rows.
    pub(super) fn page_bytes(self, tokens: usize) -> usize {
        let codes = tokens.saturating_mul(self.codes);
        codes.saturating_add(codes % 2).saturating_add(tokens.saturating_mul(self.scales))
    }

    /// Where the scales of a page begin that has room for `tokens`.
    pub(super) fn scales_at(self, tokens: usize) -> usize {
        (tokens * self.codes).next_multiple_of(2)
    }

    /// Codes and scales of some rows of a page that has room for `tokens`.
    pub(super) fn split(self, page: &[u8], tokens: usize, rows: Range<usize>) -> (&[u8], &[f16]) {
        let (codes, scales) = page.split_at(self.scales_at(tokens));
        let of = |width: usize| rows.start * width..rows.end * width;
        (&codes[of(self.codes)], bytemuck::cast_slice(&scales[of(self.scales)]))
    }

    /// Those of row `at`, to be written.
    pub(super) fn split_mut(self, page: &mut [u8], tokens: usize, at: usize) -> (&mut [u8], &mut [f16]) {
        let (codes, scales) = page.split_at_mut(self.scales_at(tokens));
        let of = |width: usize| at * width..(at + 1) * width;
        (&mut codes[of(self.codes)], bytemuck::cast_slice_mut(&mut scales[of(self.scales)]))
    }
}
