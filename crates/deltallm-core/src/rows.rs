//! Uncoded rows of keys or values, in pages.

use std::{collections::VecDeque, ops::Range};

use crate::{
    Charge, CoreError, ElementType, Elements,
    budget::{table_capacity, table_growth},
};

/// One row of `channels` numbers per token, stored in pages of a fixed number of tokens.
///
/// Rows are appended at the end, can be cut off at the end, and pages can be dropped from the front: the exact window
/// of a hybrid cache is such a tail. Pages never move, so the bytes held are exactly what is charged.
#[derive(Debug)]
pub struct PagedRows {
    channels: usize,
    element: ElementType,
    page_tokens: usize,
    pages: VecDeque<Elements>,
    /// Number of the first page in `pages`, counted from token 0.
    first_page: usize,
    /// First token whose row is held.
    first: usize,
    len: usize,
}

impl PagedRows {
    /// An empty store of rows of `channels` numbers, in pages of `page_tokens` (at least 1) tokens.
    pub fn new(channels: usize, element: ElementType, page_tokens: usize) -> Self {
        Self {
            channels,
            element,
            page_tokens: page_tokens.max(1),
            pages: VecDeque::new(),
            first_page: 0,
            first: 0,
            len: 0,
        }
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
        self.channels
    }

    /// The first token whose row is held (the length if none is).
    pub fn first(&self) -> usize {
        self.first
    }

    /// Appends a row (`[channels]`). A new page is charged before it is allocated.
    ///
    /// # Errors
    /// [`CoreError::Channels`], [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`]; nothing changes then.
    pub fn push(&mut self, row: &[f32], charge: &mut Charge) -> Result<(), CoreError> {
        if row.len() != self.channels {
            return Err(CoreError::Channels { expected: self.channels, got: row.len() });
        }
        self.element.check(row)?;
        let page = self.len / self.page_tokens - self.first_page;
        if page == self.pages.len() {
            self.add_page(charge)?;
        }
        self.pages[page].extend(row);
        self.len += 1;
        Ok(())
    }

    fn add_page(&mut self, charge: &mut Charge) -> Result<(), CoreError> {
        let slots =
            if self.pages.len() < self.pages.capacity() { 0 } else { table_growth(self.pages.capacity()) };
        charge.grow(slots * size_of::<Elements>() + self.page_bytes())?;
        self.pages.reserve_exact(slots);
        let mut page = Elements::with_capacity(self.element, self.page_tokens * self.channels);
        // After a cut within a page that had been dropped, the lost rows in front are filled up; nobody reads them.
        page.extend(&vec![0.0; self.len % self.page_tokens * self.channels]);
        self.pages.push_back(page);
        Ok(())
    }

    /// Forgets every token from `len` on. Rows dropped from the front do not come back.
    ///
    /// # Errors
    /// [`CoreError::TruncateBeyondEnd`].
    pub fn truncate(&mut self, len: usize, charge: &mut Charge) -> Result<(), CoreError> {
        if len > self.len {
            return Err(CoreError::TruncateBeyondEnd { len: self.len, got: len });
        }
        self.len = len;
        self.first = self.first.min(len);
        // After an earlier cut into pages dropped from the front, the page that `len` stands in may not be held.
        let pages = len.div_ceil(self.page_tokens).saturating_sub(self.first_page).min(self.pages.len());
        charge.shrink((self.pages.len() - pages) * self.page_bytes());
        self.pages.truncate(pages);
        if pages == 0 {
            self.first_page = len / self.page_tokens;
        } else if let Some(page) = self.pages.back_mut() {
            page.truncate((len - (self.first_page + pages - 1) * self.page_tokens) * self.channels);
        }
        Ok(())
    }

    /// Drops the pages that hold nothing but tokens before `first`.
    pub fn drop_before(&mut self, first: usize, charge: &mut Charge) {
        let end = first.min(self.len);
        while (self.first_page + 1) * self.page_tokens <= end && self.pages.pop_front().is_some() {
            self.first_page += 1;
            self.first = self.first.max(self.first_page * self.page_tokens);
            charge.shrink(self.page_bytes());
        }
    }

    /// Checks that every number held can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let mut scratch = Vec::new();
        for page in self.pages.iter().filter(|page| page.narrows_to(element)) {
            let mut rows = page.read(0..page.len(), &mut scratch).chunks_exact(self.channels.max(1));
            rows.try_for_each(|row| element.check(row))?;
        }
        Ok(())
    }

    /// Converts page by page to a narrower type and gives the freed bytes back; later rows are stored in it too. A
    /// store that is as narrow already stays as it is.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub fn narrow(&mut self, element: ElementType, charge: &mut Charge) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if element.bytes() < self.element.bytes() {
            self.element = element;
            self.pages.iter_mut().for_each(|page| page.convert(element, charge));
        }
        Ok(())
    }

    /// Bytes that appending `tokens` rows would charge.
    pub fn growth(&self, tokens: usize) -> usize {
        if tokens == 0 {
            return 0;
        }
        let end = self.len.saturating_add(tokens).div_ceil(self.page_tokens) - self.first_page;
        let (pages, slots) = (end.max(self.pages.len()), self.pages.capacity());
        let new_slots = table_capacity(slots, pages) - slots;
        (pages - self.pages.len())
            .saturating_mul(self.page_bytes())
            .saturating_add(new_slots.saturating_mul(size_of::<Elements>()))
    }

    /// The rows of `tokens` as f32, `[tokens, channels]`: borrowed where they already are, else gathered into
    /// `scratch`. All of them must be held.
    pub fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let at = |token: usize| (token / self.page_tokens - self.first_page, token % self.page_tokens);
        let (page, row) = at(tokens.start);
        if row + tokens.len() <= self.page_tokens {
            let range = row * self.channels..(row + tokens.len()) * self.channels;
            return self.pages[page].read(range, scratch);
        }
        scratch.clear();
        let mut part = Vec::new();
        let mut token = tokens.start;
        while token < tokens.end {
            let (page, row) = at(token);
            let rows = (self.page_tokens - row).min(tokens.end - token);
            let range = row * self.channels..(row + rows) * self.channels;
            scratch.extend_from_slice(self.pages[page].read(range, &mut part));
            token += rows;
        }
        scratch
    }

    /// The stored form of the first of `tokens`: the page they are in, and which of its elements they are. As many of
    /// them as that page holds; all must be held.
    pub fn stored(&self, tokens: Range<usize>) -> (&Elements, Range<usize>) {
        let (page, row) = (tokens.start / self.page_tokens - self.first_page, tokens.start % self.page_tokens);
        let rows = (self.page_tokens - row).min(tokens.len());
        (&self.pages[page], row * self.channels..(row + rows) * self.channels)
    }

    /// Bytes of all pages held.
    pub fn held_bytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Bytes of the table of pages.
    pub fn bookkeeping_bytes(&self) -> usize {
        self.pages.capacity() * size_of::<Elements>()
    }

    fn page_bytes(&self) -> usize {
        self.page_tokens * self.channels * self.element.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBudget;

    fn filled(tokens: usize, budget: &MemoryBudget) -> (PagedRows, Charge) {
        let (mut rows, mut charge) = (PagedRows::new(2, ElementType::F32, 4), budget.charge());
        for t in 0..tokens {
            rows.push(&[t as f32, -(t as f32)], &mut charge).unwrap();
        }
        (rows, charge)
    }

    fn first_column(rows: &PagedRows, tokens: Range<usize>) -> Vec<f32> {
        rows.read(tokens, &mut Vec::new()).iter().step_by(2).copied().collect()
    }

    #[test]
    fn reads_across_pages() {
        let (rows, _charge) = filled(11, &MemoryBudget::unlimited());
        assert_eq!(first_column(&rows, 2..10), [2., 3., 4., 5., 6., 7., 8., 9.]);
        assert_eq!(first_column(&rows, 4..8), [4., 5., 6., 7.]);
    }

    #[test]
    fn every_cut_and_refill_reads_back() {
        let budget = MemoryBudget::unlimited();
        for dropped in 0..12 {
            for len in 0..=11 {
                let (mut rows, mut charge) = filled(11, &budget);
                rows.drop_before(dropped, &mut charge);
                rows.truncate(len, &mut charge).unwrap();
                let held = rows.first();
                assert!(held <= len && held >= (dropped / 4 * 4).min(len), "{dropped} {len} {held}");
                for t in len..20 {
                    rows.push(&[t as f32, 0.0], &mut charge).unwrap();
                }
                let expected: Vec<f32> = (held..20).map(|t| t as f32).collect();
                assert_eq!(first_column(&rows, held..20), expected);
                assert_eq!(charge.bytes(), rows.held_bytes() + rows.bookkeeping_bytes());
                drop(charge);
                assert_eq!(budget.used(), 0);
            }
        }
    }

    #[test]
    fn cuts_into_dropped_pages_can_follow_each_other() {
        for cuts in [[10, 6, 6], [6, 6, 5], [5, 4, 0], [3, 3, 3]] {
            let budget = MemoryBudget::unlimited();
            let (mut rows, mut charge) = filled(11, &budget);
            rows.drop_before(11, &mut charge);
            for cut in cuts {
                rows.truncate(cut, &mut charge).unwrap();
                assert_eq!(charge.bytes(), rows.held_bytes() + rows.bookkeeping_bytes(), "{cuts:?}");
            }
            let [.., len] = cuts;
            for t in len..20 {
                rows.push(&[t as f32, 0.0], &mut charge).unwrap();
            }
            let expected: Vec<f32> = (len..20).map(|t| t as f32).collect();
            assert_eq!(first_column(&rows, len..20), expected, "{cuts:?}");
        }
    }

    #[test]
    fn a_page_beyond_the_budget_is_refused_and_nothing_is_lost() {
        let (rows, charge) = filled(4, &MemoryBudget::unlimited());
        let budget = MemoryBudget::new(charge.bytes());
        let (mut rows2, mut charge2) = filled(4, &budget);
        assert!(matches!(rows2.push(&[0.0; 2], &mut charge2), Err(CoreError::BudgetExhausted { .. })));
        assert_eq!(first_column(&rows2, 0..4), first_column(&rows, 0..4));
        assert_eq!(rows2.len(), 4);
    }
}
