//! Bytes of a cache before it exists.

mod codes_from;

use crate::{
    budget::{StoreBytes, table_capacity},
    delta::{Expected, most_key_bytes, planned_bytes, whole_keys},
    footprint::Footprint,
    kv_store::{BLOCK_TOKENS, KvStore},
    rows::{Layout, RowFormat},
};

/// How the keys of a planned cache are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum KeyPlan {
    /// Every key whole.
    Dense,
    /// As hybrid and delta attention hold them: coded in the way of the store, with exact copies of the window and the
    /// sinks; if the store quantises, those are not coded, and have exact values too.
    Delta {
        /// Expected share of delta entries that are zero, in 0..=1.
        zero_fraction: f64,
        /// Expected share of the transmitted codes that change by more than 4 bits hold, in 0..=1; in [`KvStore::Compact`].
        wide: f64,
        /// Expected values per key that no code holds (see [`DeltaMatrix::in_steps`](crate::DeltaMatrix::in_steps)); in [`KvStore::Compact`].
        escapes: f64,
        /// Keys in the exact sliding window.
        window: usize,
        /// First keys kept exactly.
        sinks: usize,
    },
}

/// Computes the bytes of one layer's cache before it exists.
///
/// Dense plans are exact; where tokens are [dropped](Self::attended), the table of pages and the center of 8-bit keys may differ. Delta plans are as exact as what they expect of the deltas, for a cache that is filled token by token;
/// a chunk of `n` tokens holds up to `n` more exact keys while it is being attended to. Numbers that are too large stay at the
/// largest one.
///
/// ```
/// use deltallm_core::{CachePlan, KeyPlan, KvStore};
///
/// let plan = CachePlan::new(3, 64, KvStore::F16, KeyPlan::Dense);
/// let (one, page) = (plan.footprint(1).total(), plan.footprint(64).total());
/// assert_eq!(one, page); // a cache grows in pages of 64 tokens
/// assert!(plan.footprint(65).total() > page);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CachePlan {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a key.
    pub head_dim: usize,
    /// Channels of a value.
    pub value_dim: usize,
    /// How far back queries attend, if not to everything: what is further back is dropped, page by page.
    pub attended: Option<usize>,
    /// How keys and values are stored.
    pub store: KvStore,
    /// Store of the keys.
    pub keys: KeyPlan,
}

impl CachePlan {
    /// A plan for a layer of `kv_heads` heads of `head_dim` channels.
    pub fn new(kv_heads: usize, head_dim: usize, store: KvStore, keys: KeyPlan) -> Self {
        Self { kv_heads, head_dim, value_dim: head_dim, attended: None, store, keys }
    }

    /// The same for values of another width than keys.
    #[must_use]
    pub fn value_dim(self, value_dim: usize) -> Self {
        Self { value_dim, ..self }
    }

    /// The same for a layer whose queries attend to the latest tokens only, this many; `None` for all.
    #[must_use]
    pub fn attended(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { attended: tokens.into(), ..self }
    }

    /// Tokens in a page of the exact window: small, because on average half a page stays empty.
    pub const WINDOW_PAGE_TOKENS: usize = 16;

    /// Tokens in a page of sinks: as many as there are, unless they are unusually many.
    pub fn sink_page_tokens(sinks: usize) -> usize {
        sinks.clamp(1, Self::WINDOW_PAGE_TOKENS)
    }

    /// Bytes of the layer's cache once it holds `tokens` tokens.
    pub fn footprint(&self, tokens: usize) -> Footprint {
        if tokens == 0 {
            return Footprint::default();
        }
        let dropped = self.attended.map_or(0, |most| tokens.saturating_sub(most));
        // Whole pages and blocks are dropped.
        let held = tokens - (dropped / BLOCK_TOKENS * BLOCK_TOKENS).min(tokens);
        let format = RowFormat::of(self.store);
        let (keys, values, exact) = match self.keys {
            KeyPlan::Dense => {
                let [keys, values] = self.pages_of(format, held, held == tokens);
                (keys, values, StoreBytes::default())
            }
            KeyPlan::Delta { zero_fraction, wide, escapes, window, sinks } => {
                let first_codes = self.codes_from().max(window);
                let uncoded = tokens < first_codes || self.attended.is_some_and(|most| most <= first_codes);
                if self.holds_tokens_once() && uncoded {
                    let [keys, values] = self.pages_of(self.store.exact().into(), held, true);
                    return self.all_heads(StoreBytes::default(), StoreBytes::default(), keys.plus(values));
                }
                let coded = self.coded(tokens, window).saturating_sub(tokens - held);
                let [whole_keys, values] = self.pages_of(format, coded, held == tokens);
                let keys = match self.store.is_delta() {
                    true => self.delta_keys(coded, zero_fraction, wide, escapes),
                    false => whole_keys,
                };
                (keys, values, self.exact_rows(tokens, window, sinks))
            }
        };
        self.all_heads(keys, values, exact)
    }

    fn all_heads(&self, keys: StoreBytes, values: StoreBytes, window: StoreBytes) -> Footprint {
        let [keys, values, window] = [keys, values, window].map(|head| head.times(self.kv_heads));
        let tables = [values.table, window.table].into_iter().fold(keys.table, usize::saturating_add);
        Footprint { keys: keys.data, values: values.data, window: window.data, bookkeeping: tables }
    }

    /// Whether a token is held exactly or coded, not both: in the stores that quantise, beside a window.
    fn holds_tokens_once(&self) -> bool {
        self.store.is_quantised() && matches!(self.keys, KeyPlan::Delta { window: 1.., .. })
    }

    /// Tokens that are coded, once any are.
    fn coded(&self, tokens: usize, window: usize) -> usize {
        if self.holds_tokens_once() { tokens.saturating_sub(window - 1) } else { tokens }
    }

    /// Keys and values of one head, in pages as a dense cache has them; `from_start` says whether the first page is among them.
    fn pages_of(&self, format: RowFormat, tokens: usize, from_start: bool) -> [StoreBytes; 2] {
        let pages = tokens.div_ceil(BLOCK_TOKENS);
        [(self.head_dim, true), (self.value_dim, false)].map(|(channels, centered)| {
            let rows = Layout { channels, format, page_tokens: BLOCK_TOKENS, centered };
            let held = [0, 1].map(|others| from_start && pages > others);
            rows.bytes_from(pages, table_capacity(0, pages), held)
        })
    }

    /// Delta-coded keys of one head.
    fn delta_keys(&self, tokens: usize, zero_fraction: f64, wide: f64, escapes: f64) -> StoreBytes {
        if tokens == 0 {
            return StoreBytes::default();
        }
        let per_block = |per_token: f64| (BLOCK_TOKENS as f64 * per_token.max(0.0)).round() as usize;
        let sent = per_block(self.head_dim as f64 * (1.0 - zero_fraction.clamp(0.0, 1.0)));
        let wide = (sent as f64 * wide.clamp(0.0, 1.0)).round() as usize;
        // A value escapes at most once.
        let escapes = per_block(escapes.min(self.head_dim as f64));
        let keys = planned_bytes(self.store, self.head_dim, tokens, Expected { sent, wide, escapes });
        // Keys that would take more are held whole.
        let whole = whole_keys(self.attended.is_some());
        match self.holds_tokens_once() && keys.total() > most_key_bytes(whole, self.head_dim, tokens) {
            true => self.pages_of(whole, tokens, true)[0],
            false => keys,
        }
    }

    /// Exact window and sinks of one head, with their values where far ones are quantised.
    fn exact_rows(&self, tokens: usize, window: usize, sinks: usize) -> StoreBytes {
        if window == 0 {
            return StoreBytes::default();
        }
        let format = RowFormat::from(self.store.exact());
        let page = Self::WINDOW_PAGE_TOKENS;
        let needed = tokens.saturating_sub(window - 1).min(tokens);
        let held = tokens.div_ceil(page) - needed / page;
        // Before a page is dropped, the window can touch one more than it fills.
        let most = tokens.div_ceil(page).min((window - 1).div_ceil(page) + 1);
        let sink_page = Self::sink_page_tokens(sinks);
        let dropped = self.attended.map_or(0, |most| tokens.saturating_sub(most));
        let dropped = dropped / BLOCK_TOKENS * BLOCK_TOKENS >= sinks;
        let sinks = if dropped { 0 } else { sinks.min(self.coded(tokens, window)).div_ceil(sink_page) };
        let of = |channels| {
            let rows = |page_tokens| Layout { channels, format, page_tokens, centered: false };
            rows(page)
                .bytes(held, table_capacity(0, most))
                .plus(rows(sink_page).bytes(sinks, table_capacity(0, sinks)))
        };
        let keys = of(self.head_dim);
        if self.store.is_quantised() { keys.plus(of(self.value_dim)) } else { keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeltaMatrix, ElementType, MemoryBudget, internal::PagedRows};

    #[test]
    fn a_dense_plan_is_exact_at_every_length() {
        let budget = MemoryBudget::unlimited();
        let mut rows = PagedRows::new(8, ElementType::F16, BLOCK_TOKENS, &budget);
        for tokens in 1..600 {
            rows.push(&[0.5; 8]).unwrap();
            let plan = CachePlan::new(1, 8, KvStore::F16, KeyPlan::Dense);
            assert_eq!(plan.footprint(tokens).total(), 2 * budget.used());
        }
    }

    #[test]
    fn a_delta_plan_is_exact_when_the_zero_fraction_is() {
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::new(vec![0.0; 8], ElementType::F32, &budget).unwrap();
        for t in 0..1000_usize {
            // Half of the channels change at every step.
            let key: Vec<f32> = (0..8).map(|j| if j % 2 == 0 { t as f32 + 1.0 } else { 0.0 }).collect();
            matrix.push(&key).unwrap();
            let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.0, escapes: 0.0, window: 0, sinks: 0 };
            let plan = CachePlan::new(1, 8, KvStore::F32, keys).footprint(t + 1);
            assert_eq!(plan.keys, matrix.key_bytes());
            assert_eq!(matrix.key_bytes() + matrix.bookkeeping_bytes(), budget.used());
        }
    }
}
