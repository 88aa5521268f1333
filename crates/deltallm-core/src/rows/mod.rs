//! Rows of keys or values, in pages.
//!
//! In reading order: here, the store; [`layout`] (its pages), [`forms`] (how rows are held, each form in its file), [`copies`] (in other
//! formats), [`saved`] (forks and snapshots).

mod coded_page;
mod copies;
mod float;
mod forms;
mod int4;
mod int8;
mod layout;
mod saved;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, ops::Range};

use crate::{
    budget::{MemoryBudget, Reservation, StoreBytes, table_capacity},
    check::check_row,
    error::CoreError,
    piece::Piece,
};

pub use crate::quantise::GROUP;
pub(crate) use layout::Layout;
pub use {
    float::FloatRows,
    forms::{RowFormat, StoredRows},
    int4::Int4Rows,
    int8::Int8Rows,
};

/// More tokens than any cache on earth has.
pub(crate) const MOST_TOKENS: usize = 1 << 40;

/// One row of `channels` numbers per token, stored in pages of a fixed number of tokens.
///
/// Rows are appended at the end, can be cut off at the end, and pages can be dropped from the front: the exact window
/// of a hybrid cache is such a tail. Pages never move, so the bytes held are exactly what is charged. Forks share pages; whoever
/// writes into one that others have too copies it first.
///
/// ```
/// use deltallm_core::MemoryBudget;
/// use deltallm_core::internal::{PagedRows, RowFormat};
///
/// let budget = MemoryBudget::unlimited();
/// let mut rows = PagedRows::new(2, RowFormat::Int8, 64, &budget);
/// for t in 0..10 {
///     rows.push(&[t as f32, -1.0])?;
/// }
/// rows.truncate(5)?;
/// let mut scratch = Vec::new();
/// let last = rows.read(4..5, &mut scratch);
/// assert!((last[0] - 4.0).abs() < 0.02); // half a step of 4 / 127
/// assert_eq!(rows.len(), 5);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct PagedRows {
    layout: Layout,
    pages: VecDeque<Piece>,
    /// Number of the first page in `pages`, counted from token 0.
    first_page: usize,
    /// First token whose row is held.
    first: usize,
    /// Tokens appended. Rows after them, left in their page by a truncation, are overwritten.
    len: usize,
    /// What rows behind the first page are held relative to, `[channels]`; empty for nothing.
    center: Vec<f32>,
    /// A row less the center, on its way to a page.
    shifted: Vec<f32>,
    /// Of the table and the center: pages pay for themselves.
    charge: Reservation,
}

impl PagedRows {
    /// An empty store of rows of `channels` numbers, in pages of `page_tokens` (at least 1) tokens, that charges `budget`.
    pub fn new(
        channels: usize,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Self {
        Self {
            layout: Layout {
                channels,
                format: format.into(),
                page_tokens: page_tokens.max(1),
                centered: false,
            },
            pages: VecDeque::new(),
            first_page: 0,
            first: 0,
            len: 0,
            center: Vec::new(),
            shifted: Vec::new(),
            charge: budget.reservation(),
        }
    }

    /// An empty store whose first token is to be number `first`, as if those before it had been dropped.
    pub fn starting_at(
        first: usize,
        channels: usize,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Self {
        let rows = Self::new(channels, format, page_tokens, budget);
        Self { first_page: first / rows.layout.page_tokens, first, len: first, ..rows }
    }

    /// Holds rows of 8 bits relative to the mean of the first page, and that page in f16. What all rows have in common, as biases of keys
    /// are, then takes nothing of a scale. (Rows of floats are held as they are.)
    #[must_use]
    pub fn centered(self) -> Self {
        Self { layout: Layout { centered: true, ..self.layout }, ..self }
    }

    /// Tokens appended so far, those dropped from the front included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token has been appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers in a row.
    pub fn channels(&self) -> usize {
        self.layout.channels
    }

    /// How the numbers are held.
    pub fn format(&self) -> RowFormat {
        self.layout.format
    }

    /// Tokens in a page.
    pub fn page_tokens(&self) -> usize {
        self.layout.page_tokens
    }

    /// The account that is charged.
    pub fn budget(&self) -> &MemoryBudget {
        self.charge.budget()
    }

    /// The first of `tokens` in their stored form, as many as are in one page, and their number. `None` if their page is not
    /// held. Rows of the page before [`first`](Self::first) have been dropped and must not be read.
    pub fn stored(&self, tokens: Range<usize>) -> Option<(StoredRows<'_>, usize)> {
        let Layout { channels, page_tokens, .. } = self.layout;
        let number = tokens.start / page_tokens;
        let page = self.pages.get(number.checked_sub(self.first_page)?)?;
        let first = tokens.start % page_tokens;
        let count = tokens.len().min(page_tokens - first);
        let format = self.layout.format_of(number);
        let rows = match format.view(page.data(), page_tokens, channels, first..first + count) {
            StoredRows::Int8(rows) => StoredRows::Int8(Int8Rows { center: &self.center, ..rows }),
            rows => rows,
        };
        Some((rows, count))
    }

    /// The first token whose row is held (the length if none is).
    pub fn first(&self) -> usize {
        self.first
    }

    /// Appends a row (`[channels]`). A new page is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push(&mut self, row: &[f32]) -> Result<(), CoreError> {
        check_row(row, self.layout.channels, self.layout.format.takes())?;
        self.push_checked(row)
    }

    /// The same with a row that is known to have the right length and to fit the format ([`RowFormat::takes`]).
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push_checked(&mut self, row: &[f32]) -> Result<(), CoreError> {
        debug_assert!(row.len() == self.layout.channels && self.layout.format.takes().holds(row));
        let Layout { page_tokens, .. } = self.layout;
        let number = self.len / page_tokens;
        if number - self.first_page == self.pages.len() {
            self.add_page()?;
        }
        let format = self.layout.format_of(number);
        let page = self.pages[number - self.first_page].data_mut(self.charge.budget())?;
        let row = if format == RowFormat::Int8 && !self.center.is_empty() {
            self.shifted.clear();
            self.shifted.extend(row.iter().zip(&self.center).map(|(x, center)| x - center));
            &self.shifted
        } else {
            row
        };
        format.write(page, page_tokens, self.len % page_tokens, row);
        self.len += 1;
        Ok(())
    }

    fn add_page(&mut self) -> Result<(), CoreError> {
        let slots = table_capacity(self.pages.capacity(), self.pages.len() + 1);
        let number = self.first_page + self.pages.len();
        let center = number == 1 && self.layout.has_center() && self.first_page == 0;
        let more = (slots - self.pages.capacity()) * size_of::<Piece>() + self.layout.center_bytes(center);
        self.charge.grow(more)?;
        let page = Piece::new(self.layout.page_bytes(self.layout.format_of(number)), self.charge.budget());
        let page = page.inspect_err(|_| self.charge.shrink(more))?;
        self.pages.reserve_exact(slots - self.pages.len());
        if center {
            self.take_center();
        }
        self.pages.push_back(page);
        Ok(())
    }

    /// Sets the center to the mean of the first page.
    fn take_center(&mut self) {
        let (channels, rows) = (self.layout.channels, self.layout.page_tokens);
        self.shifted.reserve_exact(channels);
        let mut center = Vec::with_capacity(channels);
        center.resize(channels, 0.0);
        for row in self.read(0..rows, &mut Vec::new()).chunks_exact(channels.max(1)) {
            center.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / rows as f32);
        }
        self.center = center;
    }

    /// Forgets every token from `len` on. Rows dropped from the front do not come back.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize) -> Result<(), CoreError> {
        if len > self.len {
            return Err(CoreError::TruncateBeyondEnd { len: self.len, got: len });
        }
        self.len = len;
        self.first = self.first.min(len);
        // After an earlier cut into pages dropped from the front, the page that `len` stands in may not be held.
        let pages =
            len.div_ceil(self.layout.page_tokens).saturating_sub(self.first_page).min(self.pages.len());
        self.pages.truncate(pages);
        if pages == 0 {
            self.first_page = len / self.layout.page_tokens;
        }
        if self.first_page == 0 && pages <= 1 {
            // It comes again, of the rows that are there then.
            self.charge.shrink(self.center_bytes());
            (self.center, self.shifted) = (Vec::new(), Vec::new());
        }
        Ok(())
    }

    /// Drops the pages that hold nothing but tokens before `first`, and a table that has become far too large.
    pub fn drop_before(&mut self, first: usize) {
        let end = first.min(self.len);
        while (self.first_page + 1) * self.layout.page_tokens <= end && self.pages.pop_front().is_some() {
            self.first_page += 1;
            self.first = self.first.max(self.first_page * self.layout.page_tokens);
        }
        if self.pages.capacity() > table_capacity(0, 4 * self.pages.len().max(2)) {
            let slots = self.pages.capacity();
            self.pages.shrink_to(table_capacity(0, 2 * self.pages.len()));
            self.charge.shrink((slots - self.pages.capacity()) * size_of::<Piece>());
        }
    }

    /// Whether others hold some of the pages too.
    pub fn is_shared(&self) -> bool {
        self.pages.iter().any(Piece::is_shared)
    }

    /// Bytes that appending `tokens` rows would charge.
    pub fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        let end = self.len.saturating_add(tokens).div_ceil(self.layout.page_tokens) - self.first_page;
        let pages = end.max(self.pages.len());
        let grown = self.bytes_with(pages, table_capacity(self.pages.capacity(), pages)).beyond(self.bytes());
        // The page that the next row goes to.
        let next = self.pages.get(self.len / self.layout.page_tokens - self.first_page);
        grown.saturating_add(next.filter(|page| page.is_shared()).map_or(0, Piece::bytes))
    }

    /// The rows of `tokens` as f32, `[tokens, channels]`: borrowed where they already are, else gathered into
    /// `scratch`. All of them must be held.
    pub fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if let Some((StoredRows::F32(rows), count)) = self.stored(tokens.clone())
            && count == tokens.len()
        {
            return rows.data;
        }
        scratch.clear();
        let mut token = tokens.start;
        while token < tokens.end {
            let Some((rows, count)) = self.stored(token..tokens.end) else { break };
            let start = scratch.len();
            rows.gather(self.layout.channels, scratch);
            if let StoredRows::Int8(Int8Rows { center: center @ [_, ..], .. }) = rows {
                let rows = scratch[start..].chunks_exact_mut(self.layout.channels);
                rows.for_each(|row| row.iter_mut().zip(center).for_each(|(x, center)| *x += center));
            }
            token += count;
        }
        scratch
    }

    /// Bytes of all pages held.
    pub fn held_bytes(&self) -> usize {
        self.bytes().data
    }

    /// Bytes of the table of pages.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.bytes().table
    }

    fn bytes(&self) -> StoreBytes {
        self.bytes_with(self.pages.len(), self.pages.capacity())
    }

    /// Bytes with so many pages in a table of so many slots.
    fn bytes_with(&self, pages: usize, slots: usize) -> StoreBytes {
        let from_start = self.first_page == 0;
        let center = !self.center.is_empty() || from_start && pages > 1;
        self.layout.bytes_from(pages, slots, [from_start && pages > 0, center])
    }

    fn center_bytes(&self) -> usize {
        self.layout.center_bytes(!self.center.is_empty())
    }

    /// Bytes that pages do not pay for, in a table of so many slots.
    fn own_bytes(&self, slots: usize) -> usize {
        slots * size_of::<Piece>() + self.center_bytes()
    }
}
