//! A limit on the bytes of key-value caches, charged by every allocation.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::error::CoreError;

/// Bytes that caches may hold together. Clones share one account, so all layers of a model draw on the same limit.
///
/// ```
/// use deltallm_core::MemoryBudget;
///
/// let budget = MemoryBudget::new(1000);
/// let mut layer = budget.reservation();
/// layer.grow(600)?;
/// assert!(layer.grow(600).is_err()); // nothing changed
/// assert_eq!(budget.used(), 600);
/// drop(layer); // a cache that goes away gives its bytes back
/// assert_eq!(budget.used(), 0);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: usize,
    used: AtomicUsize,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Account { limit, used: AtomicUsize::new(0) }))
    }

    /// A budget that counts and never refuses.
    pub fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// Bytes allowed, or `None` without a limit.
    pub fn limit(&self) -> Option<usize> {
        (self.0.limit != usize::MAX).then_some(self.0.limit)
    }

    /// Bytes charged now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Bytes that can still be charged.
    pub fn available(&self) -> usize {
        self.0.limit - self.used()
    }

    /// Whether this is a clone of the other: they share one account.
    ///
    /// ```
    /// use deltallm_core::MemoryBudget;
    ///
    /// let budget = MemoryBudget::new(1000);
    /// assert!(budget.is_shared_with(&budget.clone()));
    /// assert!(!budget.is_shared_with(&MemoryBudget::new(1000)));
    /// ```
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// An empty reservation, for one cache.
    pub fn reservation(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::unlimited()
    }
}

/// The bytes one cache holds of a [`MemoryBudget`]; given back on drop.
///
/// ```
/// use deltallm_core::MemoryBudget;
///
/// let budget = MemoryBudget::new(100);
/// let mut reservation = budget.reservation();
/// reservation.grow(80)?;
/// reservation.shrink(30);
/// assert_eq!((reservation.bytes(), budget.available()), (50, 50));
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug)]
pub struct Reservation {
    budget: MemoryBudget,
    bytes: usize,
}

impl Reservation {
    /// Charges `bytes` more. Call it before the allocation it pays for.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`]; the account is unchanged then.
    pub fn grow(&mut self, bytes: usize) -> Result<(), CoreError> {
        let Account { limit, used } = &*self.budget.0;
        // The counter publishes no other memory, so relaxed ordering is enough.
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| total <= limit)
        })
        .map_err(|used| CoreError::BudgetExhausted {
            requested: bytes,
            available: limit - used,
            limit: *limit,
        })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives `bytes` back (at most what is held).
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.0.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The account.
    pub fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// A part of this (at most all), to be given back apart from the rest. The account is unchanged.
    ///
    /// ```
    /// use deltallm_core::MemoryBudget;
    ///
    /// let budget = MemoryBudget::new(100);
    /// let mut all = budget.reservation();
    /// all.grow(80)?;
    /// drop(all.split(30));
    /// assert_eq!((all.bytes(), budget.used()), (50, 50));
    /// # Ok::<(), deltallm_core::CoreError>(())
    /// ```
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: self.budget.clone(), bytes }
    }

    /// All of this; nothing is left.
    #[must_use]
    pub fn take(&mut self) -> Self {
        self.split(usize::MAX)
    }

    /// Takes over `other`, which is of the same account; one of another account is given back instead.
    pub fn merge(&mut self, mut other: Self) {
        if self.budget.is_shared_with(&other.budget) {
            self.bytes += std::mem::take(&mut other.bytes);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

/// What a cache does when its [`MemoryBudget`] does not cover the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtLimit {
    /// Nothing: [`CoreError::BudgetExhausted`].
    #[default]
    Error,
    /// Goes one store narrower, each time: from f32 to f16; then to 8 bits in dense attention, and to the compact store
    /// where there are deltas. Keys and values are off by their rounding from then on.
    NarrowStore,
}

/// Makes room for one more element in a table, charging what the table grows by.
pub(crate) fn reserve_slot<T>(table: &mut Vec<T>, reservation: &mut Reservation) -> Result<(), CoreError> {
    if table.len() == table.capacity() {
        let more = table_growth(table.capacity());
        reservation.grow(more * size_of::<T>())?;
        table.reserve_exact(more);
    }
    Ok(())
}

/// Bytes of a store: of the pages or blocks that it holds, and of their table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StoreBytes {
    pub(crate) data: usize,
    pub(crate) table: usize,
}

impl StoreBytes {
    /// All bytes.
    pub(crate) fn total(self) -> usize {
        self.data.saturating_add(self.table)
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { data: self.data.saturating_add(other.data), table: self.table.saturating_add(other.table) }
    }

    pub(crate) fn times(self, times: usize) -> Self {
        Self { data: self.data.saturating_mul(times), table: self.table.saturating_mul(times) }
    }

    /// Bytes that this is more than `before`.
    pub(crate) fn beyond(self, before: Self) -> usize {
        self.total() - before.total()
    }
}

/// Slots by which a full table of `capacity` slots grows: an eighth, and four at least. Every fork of a cache has tables of its own, so
/// room for pages that may never come counts; a slot that is moved eight times costs nothing beside its page of tokens.
fn table_growth(capacity: usize) -> usize {
    (capacity / 8).max(4)
}

/// Slots of a table of `capacity` slots once it has grown to hold `entries`.
pub(crate) fn table_capacity(mut capacity: usize, entries: usize) -> usize {
    while capacity < entries {
        capacity = capacity.saturating_add(table_growth(capacity));
    }
    capacity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_charge_changes_nothing() {
        let budget = MemoryBudget::new(100);
        let mut reservation = budget.reservation();
        reservation.grow(70).unwrap();
        let error = reservation.grow(31).unwrap_err();
        assert_eq!(error, CoreError::BudgetExhausted { requested: 31, available: 30, limit: 100 });
        assert_eq!((reservation.bytes(), budget.used()), (70, 70));
        reservation.grow(30).unwrap();
        assert_eq!(budget.available(), 0);
    }

    #[test]
    fn a_huge_request_does_not_wrap_around() {
        let budget = MemoryBudget::unlimited();
        let mut reservation = budget.reservation();
        reservation.grow(1).unwrap();
        assert!(reservation.grow(usize::MAX).is_err());
        assert_eq!(budget.used(), 1);
    }

    #[test]
    fn charges_of_several_threads_add_up() {
        let budget = MemoryBudget::new(8 * 1000);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                let mut reservation = budget.reservation();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        reservation.grow(1).unwrap();
                    }
                    assert_eq!(reservation.bytes(), 1000);
                });
            }
        });
        assert_eq!(budget.used(), 0);
    }
}
