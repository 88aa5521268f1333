//! From which length on a cache with a window holds codes, so that it is never larger than one in f16.

use super::{CachePlan, KeyPlan};
use crate::{
    delta::{most_key_bytes, whole_keys},
    element::ElementType,
    kv_store::BLOCK_TOKENS,
    rows::RowFormat,
};

impl CachePlan {
    /// The length from which on a cache beside an exact window holds codes, in the stores that quantise; a shorter one holds
    /// all keys and values in f16, and its queries see them so.
    ///
    /// Such a cache holds a token once: in f16 while a later query may need it exactly, then coded. A window and a few codes
    /// would still take more than f16 alone, because not all pages are full. From this length on the cache is smaller whatever
    /// its keys are like. It is a multiple of 64; 0 for other caches, and `usize::MAX` if it is beyond 2^40.
    ///
    /// ```
    /// use deltallm_core::{CachePlan, KeyPlan, KvStore};
    ///
    /// let keys = KeyPlan::Delta { zero_fraction: 0.6, wide: 0.1, escapes: 0.1, window: 64, sinks: 4 };
    /// let plan = CachePlan::new(3, 64, KvStore::Compact, keys);
    /// let (f16, from) = (CachePlan::new(3, 64, KvStore::F16, KeyPlan::Dense), plan.codes_from());
    /// assert_eq!(from, 192);
    /// assert_eq!(plan.footprint(from - 1).total(), f16.footprint(from - 1).total());
    /// assert!(plan.footprint(from).total() < f16.footprint(from).total());
    /// ```
    pub fn codes_from(&self) -> usize {
        let KeyPlan::Delta { window, sinks, .. } = self.keys else { return 0 };
        if !self.holds_tokens_once() {
            return 0;
        }
        let smaller = |block: usize| {
            (block * BLOCK_TOKENS..(block + 1) * BLOCK_TOKENS).all(|tokens| {
                let [keys, values] = self.pages_of(ElementType::F16.into(), tokens, true);
                self.most_bytes(tokens, window, sinks) < keys.plus(values).total()
            })
        };
        // With a full window every block of tokens saves the same bytes: what is smaller stays so.
        let full = window.saturating_add(sinks) / BLOCK_TOKENS;
        first_block_from(full.saturating_add(1), smaller).map_or(usize::MAX, |block| block * BLOCK_TOKENS)
    }

    /// Bytes of one head that holds codes, whatever its keys are like.
    fn most_bytes(&self, tokens: usize, window: usize, sinks: usize) -> usize {
        let coded = self.coded(tokens, window);
        let [keys, values] = self.pages_of(RowFormat::of(self.store), coded, true).map(|bytes| bytes.total());
        let whole = whole_keys(self.attended.is_some());
        let keys = if self.store.is_delta() { most_key_bytes(whole, self.head_dim, coded) } else { keys };
        [keys, values].into_iter().fold(self.exact_rows(tokens, window, sinks).total(), usize::saturating_add)
    }
}

/// The first block of 64 tokens, from `first` on and below 2^40 tokens, from which on `holds`; what holds of a block must hold of
/// those after it.
fn first_block_from(first: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    let last = (1 << 40) / BLOCK_TOKENS;
    let mut low = first.min(last);
    let (mut high, mut step) = (low, 1);
    while !holds(high) {
        if high == last {
            return None;
        }
        high = (high + step).min(last);
        step *= 2;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Some(high)
}
