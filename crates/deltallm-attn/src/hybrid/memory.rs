//! What the cache of hybrid attention holds: how many of its tokens are coded, how long exact copies stay, and narrower stores.

use deltallm_core::{CoreError, KvStore, MemoryBudget, internal::exchange_all};

use super::{HybridAttention, head::HybridHead};
use crate::{AttentionKernel, window::WindowState};

impl HybridAttention {
    /// Tokens to be coded before the queries `first..end` are attended: what they see through codes, and what no later one will
    /// need exactly. In a cache without codes the latter can wait.
    pub(super) fn far_until(&self, window: WindowState, first: usize, end: usize) -> usize {
        match window.far_until(first..end) {
            0 if self.coded() == 0 => 0,
            far => far.max(self.needed_from(window, end)),
        }
    }

    /// Tokens that every head has coded.
    pub(super) fn coded(&self) -> usize {
        self.heads.last().map_or(0, |head| head.coded.len())
    }

    /// How many tokens stay coded in a cache that is cut to `len`: as many as if it had never been longer, and those that are not held
    /// exactly any more.
    pub(super) fn coded_after_cut(&self, window: WindowState, len: usize) -> usize {
        let needed = self.needed_from(window, len);
        self.heads.last().map_or(0, |head| head.coded_after_cut(needed))
    }

    /// All heads in a narrower store, if that is smaller, as compact is not with thresholds next to zero. All stay as they are if a number
    /// does not fit.
    pub(super) fn narrow_to(&mut self, store: KvStore) -> Result<(), CoreError> {
        // Memory that the conversion needs for a moment is not charged; the result is smaller than what it replaces.
        let needed = self.needed_from(self.state, self.len());
        let unlimited = MemoryBudget::unlimited();
        let mut narrow = Vec::with_capacity(self.heads.len());
        for head in self.heads.iter() {
            narrow.extend(head.narrowed(store, needed, &unlimited)?);
        }
        let bytes = |head: &HybridHead| head.footprint().total();
        let smaller = self.heads.iter().zip(&narrow).all(|(wide, narrow)| bytes(narrow) < bytes(wide));
        if smaller || self.is_empty() {
            self.heads.replace(narrow, &self.options.budget)?;
            self.options.store = store;
        }
        Ok(())
    }

    /// Drops exact copies that no later query can need, and what none attends to.
    pub(super) fn trim(&mut self) {
        let len = self.len();
        let seen = self.options.first_seen(len);
        let needed = self.needed_from(self.state, len);
        let kept = self.kept_from(self.state, len);
        let begins = needed > 0 && self.begins_later();
        // A fork that has written nothing has nothing to drop.
        let Some(heads) = self.heads.alone() else { return };
        if self.uncoded {
            return heads.iter_mut().for_each(|head| head.drop_exact(seen));
        }
        // All heads or none, so that all hold the same tokens. Where a fork holds on to exact copies, there may be no memory for what replaces
        // them: then they stay, and the next call tries again.
        if begins {
            let unlimited = MemoryBudget::unlimited();
            let coded = heads.iter().map(|head| head.with_codes_until(needed, kept, &unlimited));
            if let Ok(mut coded) = coded.collect::<Result<Vec<_>, _>>() {
                let deltas: Vec<_> = coded.iter_mut().map(HybridHead::take_deltas).collect();
                if exchange_all(heads.iter_mut().zip(coded).collect()).is_ok() {
                    heads.iter_mut().zip(deltas).for_each(|(head, deltas)| head.give_deltas(deltas));
                }
            }
        }
        if let Some(tails) = heads.iter().map(|head| head.small_pages(kept)).collect::<Option<Vec<_>>>() {
            let _ = exchange_all(heads.iter_mut().map(|head| &mut head.tail).zip(tails).collect());
        }
        for head in heads {
            head.drop_coded(seen);
            head.trim(kept);
        }
    }

    /// The first key that any query from `position` on may need exactly, if it attends to it at all.
    pub(super) fn needed_from(&self, window: WindowState, position: usize) -> usize {
        let needed = window.needed_from(position);
        if needed == 0 { 0 } else { needed.max(self.options.mask.first_key(position)) }
    }

    /// The first key that stays exact in a cache of `len` tokens: those stay, too, that queries need which may come after a cut.
    pub(super) fn kept_from(&self, window: WindowState, len: usize) -> usize {
        let cut = len.saturating_sub(self.options.exact_rewind);
        self.needed_from(window.after_cut(cut), cut).min(self.needed_from(window, len))
    }

    /// Whether nothing is coded yet, but will be as soon as that takes less memory.
    pub(super) fn begins_later(&self) -> bool {
        self.coded() == 0 && self.codes_from.is_none() && !self.uncoded
    }
}
