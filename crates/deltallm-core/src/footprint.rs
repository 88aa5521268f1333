//! Bytes of a cache: what it holds now, and what it will hold.

use std::ops::AddAssign;

use crate::{BLOCK_TOKENS, DeltaMatrix, KvStore, PagedRows, budget::table_capacity};

/// Bytes a cache holds, by purpose. Room that is allocated but not filled yet counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Footprint {
    /// Keys of the whole history, coded or not.
    pub keys: usize,
    /// Values of the whole history.
    pub values: usize,
    /// Exact copies of keys that are also held coded: window and sinks.
    pub window: usize,
    /// Tables of pages and blocks.
    pub bookkeeping: usize,
}

impl Footprint {
    /// Sum of all parts.
    pub fn total(&self) -> usize {
        self.keys + self.values + self.window + self.bookkeeping
    }
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.values += other.values;
        self.window += other.window;
        self.bookkeeping += other.bookkeeping;
    }
}

/// How the keys of a planned cache are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum KeyPlan {
    /// Every key whole.
    Dense,
    /// Delta-coded, with exact copies of the window and the sinks.
    Delta {
        /// Expected share of delta entries that are zero, in 0..=1.
        zero_fraction: f64,
        /// Keys in the exact sliding window.
        window: usize,
        /// First keys kept exactly.
        sinks: usize,
    },
}

/// Computes the bytes of one layer's cache before it exists.
///
/// Dense plans are exact. Delta plans are as exact as their zero fraction, for a cache that is filled token by token;
/// a chunk of `n` tokens holds up to `n` more exact keys while it is being attended to.
///
/// ```
/// use deltallm_core::{CachePlan, KeyPlan, KvStore};
///
/// let plan = CachePlan { kv_heads: 3, head_dim: 64, store: KvStore::F16, keys: KeyPlan::Dense };
/// let bytes = plan.footprint(1024).total();
/// assert_eq!(plan.tokens_within(bytes), 1024);
/// assert_eq!(plan.tokens_within(1000), 0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CachePlan {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// How keys and values are stored.
    pub store: KvStore,
    /// Store of the keys.
    pub keys: KeyPlan,
}

impl CachePlan {
    /// Tokens in a page of the exact window: small, because on average half a page is held in vain.
    pub const WINDOW_PAGE_TOKENS: usize = 16;

    /// Tokens in a page of sinks: as many as there are, unless they are unusually many.
    pub fn sink_page_tokens(sinks: usize) -> usize {
        sinks.clamp(1, Self::WINDOW_PAGE_TOKENS)
    }

    /// Bytes of the layer's cache once it holds `tokens` tokens.
    pub fn footprint(&self, tokens: usize) -> Footprint {
        let mut head = Footprint::default();
        if tokens > 0 {
            let element = self.store.exact();
            let row = self.head_dim * element.bytes();
            let pages = tokens.div_ceil(BLOCK_TOKENS);
            let dense = pages * BLOCK_TOKENS * row;
            head.values = dense;
            head.bookkeeping = table_capacity(0, pages) * PagedRows::SLOT_BYTES;
            match self.keys {
                KeyPlan::Dense => {
                    head.keys = dense;
                    head.bookkeeping *= 2;
                }
                KeyPlan::Delta { zero_fraction, window, sinks } => {
                    // The last block stays open until a key comes that does not fit.
                    let sealed = pages - 1;
                    let nonzeros =
                        (BLOCK_TOKENS * self.head_dim) as f64 * (1.0 - zero_fraction.clamp(0.0, 1.0));
                    head.keys = DeltaMatrix::open_bytes(self.head_dim, element)
                        + sealed
                            * DeltaMatrix::block_bytes(self.head_dim, element, nonzeros.round() as usize);
                    head.bookkeeping += table_capacity(0, sealed) * DeltaMatrix::SLOT_BYTES;
                    if window > 0 {
                        let table = |pages| table_capacity(0, pages) * PagedRows::SLOT_BYTES;
                        let page = Self::WINDOW_PAGE_TOKENS;
                        let held =
                            tokens.div_ceil(page) - (tokens + 1).saturating_sub(window).min(tokens) / page;
                        // Before a page is dropped, the window can touch one more than it fills.
                        let most = tokens.div_ceil(page).min((window - 1).div_ceil(page) + 1);
                        head.window = held * page * row;
                        head.bookkeeping += table(most);
                        if sinks > 0 {
                            let page = Self::sink_page_tokens(sinks);
                            let held = sinks.min(tokens).div_ceil(page);
                            head.window += held * page * row;
                            head.bookkeeping += table(held);
                        }
                    }
                }
            }
        }
        Footprint {
            keys: head.keys * self.kv_heads,
            values: head.values * self.kv_heads,
            window: head.window * self.kv_heads,
            bookkeeping: head.bookkeeping * self.kv_heads,
        }
    }

    /// The largest number of tokens whose cache fits in `bytes`.
    pub fn tokens_within(&self, bytes: usize) -> usize {
        let fits = |tokens: usize| self.footprint(tokens).total() <= bytes;
        // Memory grows with the tokens: double until it no longer fits, then halve the interval. No cache on earth
        // has 2^40 tokens.
        let mut high = 1;
        while high < 1 << 40 && fits(high) {
            high *= 2;
        }
        let mut low = high / 2;
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ElementType, MemoryBudget};

    #[test]
    fn a_dense_plan_is_exact_at_every_length() {
        let (mut rows, mut charge) =
            (PagedRows::new(8, ElementType::F16, BLOCK_TOKENS), MemoryBudget::unlimited().charge());
        for tokens in 1..600 {
            rows.push(&[0.5; 8], &mut charge).unwrap();
            let plan = CachePlan { kv_heads: 1, head_dim: 8, store: KvStore::F16, keys: KeyPlan::Dense };
            assert_eq!(plan.footprint(tokens).total(), 2 * charge.bytes());
        }
    }

    #[test]
    fn a_delta_plan_is_exact_when_the_zero_fraction_is() {
        let mut matrix = DeltaMatrix::new(vec![0.0; 8], ElementType::F32).unwrap();
        let mut charge = MemoryBudget::unlimited().charge();
        for t in 0..1000_usize {
            // Half of the channels change at every step.
            let key: Vec<f32> = (0..8).map(|j| if j % 2 == 0 { t as f32 + 1.0 } else { 0.0 }).collect();
            matrix.push(&key, &mut charge).unwrap();
            let keys = KeyPlan::Delta { zero_fraction: 0.5, window: 0, sinks: 0 };
            let plan = CachePlan { kv_heads: 1, head_dim: 8, store: KvStore::F32, keys }.footprint(t + 1);
            assert_eq!(plan.keys, matrix.key_bytes());
            assert_eq!(matrix.key_bytes() + matrix.bookkeeping_bytes(), charge.bytes());
        }
    }

    #[test]
    fn a_budget_smaller_than_one_token_fits_nothing() {
        let plan = CachePlan { kv_heads: 1, head_dim: 64, store: KvStore::F32, keys: KeyPlan::Dense };
        assert_eq!(plan.tokens_within(0), 0);
        assert_eq!(plan.tokens_within(plan.footprint(1).total() - 1), 0);
        assert_eq!(plan.tokens_within(plan.footprint(1).total()), BLOCK_TOKENS);
    }
}
