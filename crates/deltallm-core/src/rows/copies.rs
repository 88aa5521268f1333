//! Copies of rows, in another format or in pages of another size.

use std::ops::Range;

use super::{PagedRows, RowFormat};
use crate::{budget::MemoryBudget, element::ElementType, error::CoreError};

impl PagedRows {
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
