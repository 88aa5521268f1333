//! The memory of caches, in pieces that several of them may share.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    budget::{MemoryBudget, Reservation},
    error::CoreError,
};

/// A piece of memory that starts at a multiple of 8 bytes. Clones share it. Whoever writes copies it first, if others have it too.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// Charged once, before it is allocated, and given back with the last clone. From a table of pieces it is one step to the data, which
    /// matters: a token reads thousands of them.
    Own { words: Arc<[u64]>, charge: Arc<Reservation> },
    /// Part of a mapped file. It is not charged: the system may take its memory back at any time.
    Lent(Bytes),
}

impl Piece {
    /// Bytes that every piece takes beside its data and its slot in a table.
    pub(crate) const OVERHEAD: usize = size_of::<Reservation>() + 4 * size_of::<usize>();

    /// Bytes of the data of a piece that has room for so many.
    pub(crate) fn data_bytes(bytes: usize) -> usize {
        bytes.checked_next_multiple_of(size_of::<u64>()).unwrap_or(usize::MAX)
    }

    /// Zeros.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`].
    pub(crate) fn new(bytes: usize, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let mut charge = budget.reservation();
        charge.grow(Self::data_bytes(bytes).saturating_add(Self::OVERHEAD))?;
        let words = std::iter::repeat_n(0, bytes.div_ceil(size_of::<u64>())).collect();
        Ok(Self::Own { words, charge: Arc::new(charge) })
    }

    /// The data.
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Self::Own { words, .. } => bytemuck::cast_slice(words),
            Self::Lent(bytes) => bytes,
        }
    }

    /// The data, to be written.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`] for one that must be copied; nothing changes then.
    pub(crate) fn data_mut(&mut self, budget: &MemoryBudget) -> Result<&mut [u8], CoreError> {
        if self.is_shared() {
            let mut copy = Self::new(self.data().len(), budget)?;
            copy.alone().copy_from_slice(self.data());
            *self = copy;
        }
        Ok(self.alone())
    }

    /// The data, if nobody else has it; nothing otherwise.
    fn alone(&mut self) -> &mut [u8] {
        match self {
            Self::Own { words, .. } => Arc::get_mut(words).map(bytemuck::cast_slice_mut).unwrap_or_default(),
            Self::Lent(_) => &mut [],
        }
    }

    /// Whether others have it too.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Own { words, .. } => Arc::strong_count(words) > 1,
            Self::Lent(_) => true,
        }
    }

    /// Bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.data().len() + Self::OVERHEAD
    }

    /// Takes the reservation out of the piece; `None` if it is shared.
    pub(crate) fn uncharge(&mut self) -> Option<Reservation> {
        match self {
            Self::Own { charge, .. } => Arc::get_mut(charge).map(Reservation::take),
            Self::Lent(_) => None,
        }
    }

    /// Bytes that nobody has been charged.
    pub(crate) fn unpaid(&self) -> usize {
        match self {
            Self::Own { charge, .. } if charge.bytes() == 0 => self.bytes(),
            _ => 0,
        }
    }

    /// Pays what is [`unpaid`](Self::unpaid).
    pub(crate) fn charge_with(&mut self, all: &mut Reservation) {
        let unpaid = self.unpaid();
        if let (Self::Own { charge, .. }, 1..) = (self, unpaid)
            && let Some(charge) = Arc::get_mut(charge)
        {
            *charge = all.split(unpaid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_charged_once_whoever_shares_it() {
        let budget = MemoryBudget::new(2 * (16 + Piece::OVERHEAD));
        let first = Piece::new(10, &budget).unwrap();
        assert_eq!((first.data().len(), budget.used()), (16, first.bytes()));
        let mut second = first.clone();
        assert_eq!(budget.used(), first.bytes());
        second.data_mut(&budget).unwrap()[3] = 7;
        assert_eq!((first.data()[3], second.data()[3], budget.used()), (0, 7, 2 * first.bytes()));
        let mut third = second.clone();
        assert!(third.data_mut(&budget).is_err());
        assert_eq!(third.data()[3], 7);
        drop((first, second));
        assert_eq!(budget.used(), third.bytes());
        third.data_mut(&budget).unwrap()[3] = 8;
        assert_eq!(budget.used(), third.bytes());
        drop(third);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_charge_of_a_piece_can_pay_for_another() {
        let budget = MemoryBudget::new(1000);
        let mut old = Piece::new(80, &budget).unwrap();
        let mut new = Piece::new(40, &MemoryBudget::unlimited()).unwrap();
        drop(new.uncharge());
        let mut charge = old.uncharge().unwrap();
        assert_eq!((old.unpaid(), new.unpaid(), charge.bytes()), (old.bytes(), new.bytes(), old.bytes()));
        new.charge_with(&mut charge);
        drop((old, charge));
        assert_eq!(budget.used(), new.bytes());
        let mut shared = new.clone();
        assert!(shared.uncharge().is_none());
        drop((new, shared));
        assert_eq!(budget.used(), 0);
    }
}
