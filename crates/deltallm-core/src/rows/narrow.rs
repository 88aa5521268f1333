//! Rows in another format: in place in a narrower float type, or as a copy.

use std::ops::Range;

use super::{Layout, PagedRows, RowFormat};
use crate::{
    budget::{MemoryBudget, Reservation},
    element::ElementType,
    error::CoreError,
    piece::Piece,
};

impl PagedRows {
    /// Whether the rows are of a wider float type than `element`.
    fn narrows_to(&self, element: ElementType) -> bool {
        matches!(self.layout.format, RowFormat::Float(wide) if element.bytes() < wide.bytes())
    }

    /// Checks that every number held can be stored in `element`, should that be narrower than the store's type.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is too large.
    pub fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        if self.narrows_to(element) { self.check_all(element) } else { Ok(()) }
    }

    /// Checks that every number held is one that `element` can hold: of rows that have been loaded, and will be stored again.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is not.
    pub fn check_all(&self, element: ElementType) -> Result<(), CoreError> {
        let mut scratch = Vec::new();
        for number in self.first_page..self.first_page + self.pages.len() {
            let start = number * self.layout.page_tokens;
            let rows = self.read(start..self.len.min(start + self.layout.page_tokens), &mut scratch);
            rows.chunks_exact(self.layout.channels.max(1)).try_for_each(|row| element.check(row))?;
        }
        Ok(())
    }

    /// Bytes that narrowing charges before it gives any back: for pages that others share.
    pub fn narrow_growth(&self, element: ElementType) -> usize {
        if !self.narrows_to(element) {
            return 0;
        }
        let shared = self.pages.iter().filter(|page| page.is_shared()).count();
        Layout { format: element.into(), ..self.layout }.bytes(shared, 0).total()
    }

    /// Converts page by page to a narrower float type and gives the freed bytes back; later rows are stored in it too. A
    /// store that is as narrow already stays as it is. `charge` pays for as much as [`narrow_growth`](Self::narrow_growth) says: pages that are
    /// shared stay as they are for the others. While this runs one page exists twice, which is not charged.
    ///
    /// # Errors
    /// As [`check_narrow`](Self::check_narrow); nothing changes then.
    pub fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        self.check_narrow(element)?;
        if !self.narrows_to(element) {
            return Ok(());
        }
        let layout = Layout { format: element.into(), ..self.layout };
        for number in self.first_page..self.first_page + self.pages.len() {
            let mut narrow = self.narrowed(number, layout)?;
            let page = &mut self.pages[number - self.first_page];
            page.uncharge().into_iter().for_each(|paid| charge.merge(paid));
            narrow.charge_with(charge);
            *page = narrow;
        }
        self.layout.format = element.into();
        Ok(())
    }

    /// A copy of a page that is held in the float type of another layout. Nobody has been charged it.
    fn narrowed(&self, number: usize, layout: Layout) -> Result<Piece, CoreError> {
        let Layout { channels, page_tokens, .. } = layout;
        let unlimited = MemoryBudget::unlimited();
        let mut narrow = Piece::new(layout.page_bytes(layout.format), &unlimited)?;
        let (start, data) = (number * page_tokens, narrow.data_mut(&unlimited)?);
        let mut scratch = Vec::new();
        let rows = self.read(start..self.len.min(start + page_tokens), &mut scratch);
        for (at, row) in rows.chunks_exact(channels.max(1)).enumerate() {
            layout.format.write(data, page_tokens, at, row);
        }
        drop(narrow.uncharge());
        Ok(narrow)
    }

    /// A copy in another format, with the same tokens, that charges `budget`.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] or [`CoreError::BudgetExhausted`].
    pub fn converted(&self, format: impl Into<RowFormat>, budget: &MemoryBudget) -> Result<Self, CoreError> {
        self.copied(self.first..self.len, format, self.layout.page_tokens, budget)
    }

    /// A copy of some tokens, all of which must be held, in another format and in pages of another size.
    ///
    /// # Errors
    /// As [`converted`](Self::converted).
    pub fn copied(
        &self,
        tokens: Range<usize>,
        format: impl Into<RowFormat>,
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let mut copy = Self::starting_at(tokens.start, self.layout.channels, format, page_tokens, budget);
        copy.layout.centered = self.layout.centered;
        let mut scratch = Vec::new();
        for token in tokens {
            copy.push(self.read(token..token + 1, &mut scratch))?;
        }
        Ok(copy)
    }
}
