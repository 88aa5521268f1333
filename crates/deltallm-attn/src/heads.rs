//! The heads of a kernel, which its forks share until one of them writes.

use std::{ops::Deref, sync::Arc};

use deltallm_core::{
    CoreError, MemoryBudget, SnapshotError, SnapshotReader,
    internal::{TokenStore, exchange, pay},
};

/// The caches of all kv heads of a kernel.
#[derive(Debug)]
pub(crate) struct Heads<T>(Arc<Vec<T>>);

impl<T: TokenStore> Heads<T> {
    pub(crate) fn new(heads: Vec<T>) -> Self {
        Self(Arc::new(heads))
    }

    /// The same heads: costs nothing until one of both writes.
    pub(crate) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The heads, to be written: if others share them, a copy that charges `budget`, in which no more is copied than must be.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; nothing changes then.
    pub(crate) fn make_mut(&mut self, budget: &MemoryBudget) -> Result<&mut Vec<T>, CoreError> {
        if self.are_shared() {
            self.0 = Arc::new(self.0.fork(budget)?);
        }
        Ok(self.alone().unwrap_or_else(|| unreachable!("nobody else has the copy")))
    }

    /// The heads, to be written, unless others share them: then nothing has been written since.
    pub(crate) fn alone(&mut self) -> Option<&mut Vec<T>> {
        Arc::get_mut(&mut self.0)
    }

    /// Puts other heads, which nobody has been charged, in the place of these; others that share these keep them.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; nothing changes then.
    pub(crate) fn replace(&mut self, mut heads: Vec<T>, budget: &MemoryBudget) -> Result<(), CoreError> {
        if let Some(old) = self.alone() {
            exchange(old, heads)?;
            return Ok(());
        }
        drop(heads.uncharge());
        pay(&mut heads, budget)?;
        *self = Self::new(heads);
        Ok(())
    }

    /// Heads like these, which are empty, with the tokens that are next in a snapshot.
    pub(crate) fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        Ok(Self::new(self.0.load(reader)?))
    }

    /// Bytes that writing will charge, if every head then grows by what `growth` says of it.
    pub(crate) fn growth(&self, growth: impl Fn(&T) -> usize) -> usize {
        let sum = |heads: &[T]| heads.iter().map(growth).fold(0, usize::saturating_add);
        if !self.are_shared() {
            return sum(&self.0);
        }
        let budget = MemoryBudget::unlimited();
        let fork = self.0.fork(&budget);
        fork.map_or(usize::MAX, |heads| sum(&heads).saturating_add(budget.used()))
    }

    pub(crate) fn are_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl<T> Deref for Heads<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}
