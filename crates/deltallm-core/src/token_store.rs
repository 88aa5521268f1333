//! What all stores of keys or values do.

use crate::{
    budget::{MemoryBudget, Reservation},
    error::CoreError,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
};

/// What holds keys or values: it has paid for its memory, and can be forked.
pub trait TokenStore: Sized {
    /// A store with the same tokens that shares what does not change any more. For the rest, and for what it gets later, it charges
    /// `budget`, which is the account of this one, or one without a limit for a store that is [exchanged](exchange) later.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`].
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError>;

    /// Takes what this has been charged; it is held uncharged from then on. Memory that others hold as well stays charged.
    fn uncharge(&mut self) -> Reservation;

    /// Bytes that nobody has been charged.
    fn unpaid(&self) -> usize;

    /// Pays what is [unpaid](Self::unpaid) with a charge of that size.
    fn charge_with(&mut self, charge: &mut Reservation);

    /// Adds all that is needed to go on with these tokens, bit for bit.
    fn save(&self, writer: &mut SnapshotWriter);

    /// A store like this one, but with the tokens that are next in `reader`.
    ///
    /// # Errors
    /// [`SnapshotError`] for those of a store with other settings, and for what no store would have saved.
    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError>;
}

impl<T: TokenStore> TokenStore for Vec<T> {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let mut forks = Self::with_capacity(self.len());
        for store in self {
            forks.push(store.fork(budget)?);
        }
        Ok(forks)
    }

    /// An empty list returns an empty reservation.
    fn uncharge(&mut self) -> Reservation {
        merged(self.iter_mut().map(T::uncharge)).unwrap_or_else(|| MemoryBudget::unlimited().reservation())
    }

    fn unpaid(&self) -> usize {
        self.iter().map(T::unpaid).sum()
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        self.iter_mut().for_each(|store| store.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        self.iter().for_each(|store| store.save(writer));
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let mut loaded = Self::with_capacity(self.len());
        for store in self {
            loaded.push(store.load(reader)?);
        }
        Ok(loaded)
    }
}

/// All charges in one; `None` if there are none.
fn merged(charges: impl Iterator<Item = Reservation>) -> Option<Reservation> {
    charges.reduce(|mut all, charge| {
        all.merge(charge);
        all
    })
}

/// Charges what nobody has been charged.
///
/// # Errors
/// [`CoreError::BudgetExhausted`]; nothing changes then.
pub fn pay(store: &mut impl TokenStore, budget: &MemoryBudget) -> Result<(), CoreError> {
    let mut charge = budget.reservation();
    charge.grow(store.unpaid())?;
    store.charge_with(&mut charge);
    Ok(())
}

/// Puts `new` in the place of `old`, which has been charged, and charges no more than the difference; whatever `new` was charged is given
/// back first. Returns the old store, uncharged.
///
/// # Errors
/// [`CoreError::BudgetExhausted`]; `old` is then as it was.
pub fn exchange<T: TokenStore>(old: &mut T, mut new: T) -> Result<T, CoreError> {
    drop(new.uncharge());
    let mut charge = old.uncharge();
    let (held, needed) = (charge.bytes(), new.unpaid());
    if let Err(error) = charge.grow(needed.saturating_sub(held)) {
        old.charge_with(&mut charge);
        return Err(error);
    }
    new.charge_with(&mut charge);
    // What is left goes back when `charge` does.
    Ok(std::mem::replace(old, new))
}

/// The same for several stores: all of them or none.
///
/// # Errors
/// [`CoreError::BudgetExhausted`]; all old stores are then as they were.
pub fn exchange_all<T: TokenStore>(mut pairs: Vec<(&mut T, T)>) -> Result<(), CoreError> {
    pairs.iter_mut().for_each(|(_, new)| drop(new.uncharge()));
    let charges = pairs.iter_mut().map(|(old, _)| old.uncharge());
    let Some(mut charge) = merged(charges) else { return Ok(()) };
    let needed: usize = pairs.iter().map(|(_, new)| new.unpaid()).sum();
    if let Err(error) = charge.grow(needed.saturating_sub(charge.bytes())) {
        pairs.iter_mut().for_each(|(old, _)| old.charge_with(&mut charge));
        return Err(error);
    }
    for (old, mut new) in pairs {
        new.charge_with(&mut charge);
        *old = new;
    }
    Ok(())
}
