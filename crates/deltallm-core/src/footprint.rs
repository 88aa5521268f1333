//! Bytes of a cache: what it holds now, and what it will hold.

use std::ops::AddAssign;

use crate::{BLOCK_TOKENS, DeltaMatrix, KvStore, PagedRows, RowFormat, budget::table_capacity};

/// Bytes a cache holds, by purpose. Room that is allocated but not filled yet counts.
///
/// ```
/// use deltallm_core::Footprint;
///
/// let mut model = Footprint::default();
/// let layer = Footprint { keys: 128, values: 128, window: 64, bookkeeping: 16 };
/// for _ in 0..30 {
///     model += layer;
/// }
/// assert_eq!(model.total(), 30 * 336);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Footprint {
    /// Keys of the whole history, coded or not.
    pub keys: usize,
    /// Values of the whole history.
    pub values: usize,
    /// Exact copies of keys (and values) that are also held coded: window and sinks.
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
    /// As hybrid and delta attention hold them: coded in the way of the store, with exact copies of the window and the
    /// sinks, and of their values if the store quantises.
    Delta {
        /// Expected share of delta entries that are zero, in 0..=1.
        zero_fraction: f64,
        /// Expected share of the transmitted codes that change by more than 4 bits hold, in 0..=1; in [`KvStore::Compact`].
        wide: f64,
        /// Expected values per key that no code holds ([`Escape`](crate::Escape)); in [`KvStore::Compact`].
        escapes: f64,
        /// Keys in the exact sliding window.
        window: usize,
        /// First keys kept exactly.
        sinks: usize,
    },
}

/// Computes the bytes of one layer's cache before it exists.
///
/// Dense plans are exact. Delta plans are as exact as what they expect of the deltas, for a cache that is filled token by token;
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
            let rows = |format: RowFormat| {
                let pages = tokens.div_ceil(BLOCK_TOKENS);
                (pages * BLOCK_TOKENS * format.row_bytes(self.head_dim), page_table(pages))
            };
            let (values, values_table) = rows(self.store.values());
            let (keys, keys_table) = match (self.keys, self.store) {
                (KeyPlan::Delta { zero_fraction, wide, escapes, .. }, store) if store.is_delta() => {
                    self.delta_keys(tokens, zero_fraction, wide, escapes)
                }
                (_, store) => rows(store.values()),
            };
            head = Footprint { keys, values, window: 0, bookkeeping: keys_table + values_table };
            if let KeyPlan::Delta { window, sinks, .. } = self.keys {
                let (window, window_tables) = self.exact_rows(tokens, window, sinks);
                head.window = window;
                head.bookkeeping += window_tables;
            }
        }
        Footprint {
            keys: head.keys * self.kv_heads,
            values: head.values * self.kv_heads,
            window: head.window * self.kv_heads,
            bookkeeping: head.bookkeeping * self.kv_heads,
        }
    }

    /// Delta-coded keys of one head, and the table of blocks.
    fn delta_keys(&self, tokens: usize, zero_fraction: f64, wide: f64, escapes: f64) -> (usize, usize) {
        // The last block stays open until a key comes that does not fit.
        let sealed = tokens.div_ceil(BLOCK_TOKENS) - 1;
        let per_block = |per_token: f64| (BLOCK_TOKENS as f64 * per_token.max(0.0)).round() as usize;
        let nonzeros = per_block(self.head_dim as f64 * (1.0 - zero_fraction.clamp(0.0, 1.0)));
        let (element, escapes, room) = match self.store {
            KvStore::Compact => {
                let escapes = per_block(escapes);
                (None, escapes, DeltaMatrix::planned_escape_room(self.head_dim, escapes))
            }
            float => (Some(float.exact()), 0, 0),
        };
        let open = DeltaMatrix::open_bytes(self.head_dim, element) + room;
        let wide = (nonzeros as f64 * wide.clamp(0.0, 1.0)).round() as usize;
        let block = DeltaMatrix::block_bytes(self.head_dim, element, nonzeros, wide, escapes);
        (open + sealed * block, table_capacity(0, sealed) * DeltaMatrix::SLOT_BYTES)
    }

    /// Exact copies of window and sinks, of keys alone where far values are exact, and their tables.
    fn exact_rows(&self, tokens: usize, window: usize, sinks: usize) -> (usize, usize) {
        if window == 0 {
            return (0, 0);
        }
        let row = self.head_dim * self.store.exact().bytes();
        let copies = if self.store.is_quantised() { 2 } else { 1 };
        let page = Self::WINDOW_PAGE_TOKENS;
        let needed = (tokens + 1).saturating_sub(window).min(tokens);
        let held = tokens.div_ceil(page) - needed / page;
        // Before a page is dropped, the window can touch one more than it fills.
        let most = tokens.div_ceil(page).min((window - 1).div_ceil(page) + 1);
        let (mut bytes, mut tables) = (held * page * row, page_table(most));
        if sinks > 0 {
            let page = Self::sink_page_tokens(sinks);
            let held = sinks.min(tokens).div_ceil(page);
            bytes += held * page * row;
            tables += page_table(held);
        }
        (copies * bytes, copies * tables)
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

/// Bytes of a table that has grown to `pages` pages.
fn page_table(pages: usize) -> usize {
    table_capacity(0, pages) * PagedRows::SLOT_BYTES
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
            let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.0, escapes: 0.0, window: 0, sinks: 0 };
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
