//! The exact tokens of a head: window and sinks.

use deltallm_core::{
    CachePlan, CoreError, KvStore, MemoryBudget, Reservation, SnapshotError, SnapshotReader, SnapshotWriter,
    internal::{PagedRows, TokenStore},
};

use crate::saved::invalid;

/// Exact keys, and their values where far values are not exact.
#[derive(Debug)]
pub(crate) struct ExactRows {
    pub(crate) keys: PagedRows,
    pub(crate) values: Option<PagedRows>,
}

impl ExactRows {
    /// Without tokens; a key and a value have `channels`.
    pub(super) fn new(
        store: KvStore,
        channels: [usize; 2],
        page_tokens: usize,
        budget: &MemoryBudget,
    ) -> Self {
        let [keys, values] =
            channels.map(|channels| PagedRows::new(channels, store.exact(), page_tokens, budget));
        Self { keys, values: store.is_quantised().then_some(values) }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn push(&mut self, key: &[f32], value: &[f32]) -> Result<(), CoreError> {
        self.keys.push_checked(key)?;
        self.values.as_mut().map_or(Ok(()), |values| values.push_checked(value))
    }

    pub(super) fn bytes(&self) -> usize {
        self.rows().map(|rows| rows.held_bytes() + rows.bookkeeping_bytes()).sum()
    }

    /// Whether a fork holds some of it, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.rows().any(PagedRows::is_shared)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &PagedRows> {
        [Some(&self.keys), self.values.as_ref()].into_iter().flatten()
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut PagedRows> {
        [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten()
    }

    /// The tokens from `kept` on, in pages as a window has them.
    pub(super) fn in_small_pages(&self, kept: usize, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let page = CachePlan::WINDOW_PAGE_TOKENS;
        let first = (kept / page * page).max(self.keys.first());
        let copy = |rows: &PagedRows| rows.copied(first..rows.len(), rows.format(), page, budget);
        Ok(Self { keys: copy(&self.keys)?, values: self.values.as_ref().map(copy).transpose()? })
    }

    /// The same, of a float store, in a narrower one; with their values, which are in `values`, where it quantises. Tokens whose values have
    /// been dropped are not copied.
    pub(super) fn narrowed(
        &self,
        store: KvStore,
        values: &PagedRows,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let end = self.keys.len();
        let first = self.keys.first().max(values.first()).min(end);
        let copy = |rows: &PagedRows| rows.copied(first..end, store.exact(), self.keys.page_tokens(), budget);
        let values = store.is_quantised().then_some(values);
        Ok(Self { keys: copy(&self.keys)?, values: values.map(copy).transpose()? })
    }
}

impl TokenStore for ExactRows {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let values = self.values.as_ref().map(|values| values.fork(budget)).transpose()?;
        Ok(Self { keys: self.keys.fork(budget)?, values })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.keys.uncharge();
        self.values.iter_mut().for_each(|values| all.merge(values.uncharge()));
        all
    }

    fn unpaid(&self) -> usize {
        self.rows().map(PagedRows::unpaid).sum()
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        self.rows_mut().for_each(|rows| rows.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        writer.count(self.keys.page_tokens());
        self.rows().for_each(|rows| rows.save(writer));
    }

    /// Pages are of the size they have here, or of a window's.
    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let small = CachePlan::WINDOW_PAGE_TOKENS;
        let page_tokens = match reader.count("tokens in a page", usize::MAX)? {
            got if got == self.keys.page_tokens() || got == small && got < self.keys.page_tokens() => got,
            got => return Err(invalid("tokens in a page", "as many as in a window's or as here", got)),
        };
        let load = |rows: &PagedRows, reader: &mut SnapshotReader| {
            PagedRows::new(rows.channels(), rows.format(), page_tokens, rows.budget()).load(reader)
        };
        let keys = load(&self.keys, reader)?;
        let values = self.values.as_ref().map(|values| load(values, reader)).transpose()?;
        let bounds = |rows: &PagedRows| [rows.first(), rows.len()];
        match &values {
            Some(values) if bounds(values) != bounds(&keys) => {
                Err(invalid("exact values", "as many as exact keys", values.len()))
            }
            _ => {
                let loaded = Self { keys, values };
                // They will be coded.
                loaded.rows().try_for_each(|rows| rows.check_all(rows.format().takes()))?;
                Ok(loaded)
            }
        }
    }
}
