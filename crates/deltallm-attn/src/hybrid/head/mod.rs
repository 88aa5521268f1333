//! The cache of one kv head of hybrid attention.

mod exact_rows;
mod far_keys;
mod narrow;
mod saved;

use std::ops::Range;

use deltallm_core::{
    BLOCK_TOKENS, CachePlan, CoreError, DeltaMatrix, ElementType, Footprint, HeadThresholds, KvStore,
    MemoryBudget,
    internal::{PagedRows, RowFormat, TokenStore, exchange, pay},
};

pub(super) use exact_rows::ExactRows;
pub(super) use far_keys::FarKeys;

/// Keys and values of one kv head.
///
/// Float stores code every token as it comes, and hold exact keys of the window and the sinks beside. The stores that
/// quantise hold a token once: exactly, values too, until it leaves the window, and coded from then on.
#[derive(Debug)]
pub(crate) struct HybridHead {
    pub(crate) coded: CodedTokens,
    /// The latest tokens, exactly.
    pub(crate) tail: ExactRows,
    /// How many of the first tokens are to be kept exactly; `None` keeps no token exactly.
    exact_sinks: Option<usize>,
    /// How keys are held where their deltas would take more; `None` holds deltas in any case.
    whole: Option<RowFormat>,
    /// Whether tokens can be taken back that have left the window, and with them the exact form of what came after.
    rewinds: bool,
    /// Deltas that `keep_small` replaced by whole keys: uncharged while the call or step can be undone, then charged for as long as
    /// `exact_rewind` may return to them.
    replaced_deltas: Option<DeltaMatrix>,
    /// A key and a value of the tail on their way to be coded.
    row: [Vec<f32>; 2],
}

/// The tokens that are coded, and those of them that are kept exactly as well.
#[derive(Debug)]
pub(crate) struct CodedTokens {
    pub(crate) keys: FarKeys,
    /// In a float store, the exact ones.
    pub(crate) values: PagedRows,
    /// The first tokens, exactly.
    pub(crate) sinks: ExactRows,
}

impl CodedTokens {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Codes the next token; if it is one of the first `exact_sinks`, it is kept exactly too.
    fn push(&mut self, key: &[f32], value: &[f32], exact_sinks: Option<usize>) -> Result<(), CoreError> {
        self.keys.push(key)?;
        if exact_sinks.is_some_and(|sinks| self.sinks.len() < sinks) {
            self.sinks.push(key, value)?;
        }
        self.values.push_checked(value)
    }

    /// Back to `len` tokens, or to as many as there are.
    fn roll_back(&mut self, len: usize) {
        // None of these can fail: none is asked for more than it holds.
        let _ = self.keys.truncate(len.min(self.keys.len()));
        for rows in self.sinks.rows_mut().chain([&mut self.values]) {
            let _ = rows.truncate(len.min(rows.len()));
        }
    }
}

impl HybridHead {
    /// An empty cache with room for nothing yet. `exact_sinks` is the number of first tokens to be kept exactly beside a window, or
    /// `None` if no token is; `whole` says how keys are held where deltas would take more, if they may.
    ///
    /// # Errors
    /// For thresholds that are not numbers >= 0.
    pub(crate) fn new(
        store: KvStore,
        thresholds: HeadThresholds,
        value_dim: usize,
        exact_sinks: Option<usize>,
        whole: Option<RowFormat>,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let sink_pages = CachePlan::sink_page_tokens(exact_sinks.unwrap_or(0));
        let keys = FarKeys::new(store, thresholds, budget)?;
        let coded = CodedTokens {
            values: PagedRows::new(value_dim, RowFormat::of(store), BLOCK_TOKENS, budget),
            sinks: ExactRows::new(store, [keys.channels(), value_dim], sink_pages, budget),
            keys,
        };
        Ok(Self { whole, ..Self::with_codes(coded, store, exact_sinks, budget) })
    }

    /// The same, in which deltas whose keys become whole are kept for a rewind, or not.
    pub(crate) fn that_rewinds(self, rewinds: bool) -> Self {
        Self { rewinds, ..self }
    }

    /// A cache whose tail is still empty.
    fn with_codes(
        coded: CodedTokens,
        store: KvStore,
        exact_sinks: Option<usize>,
        budget: &MemoryBudget,
    ) -> Self {
        let channels = [coded.keys.channels(), coded.values.channels()];
        // A window that is held for its own sake has small pages. What is not coded yet lies as in a dense cache.
        let pages = if store.is_quantised() { BLOCK_TOKENS } else { CachePlan::WINDOW_PAGE_TOKENS };
        let waits = store.is_quantised() && exact_sinks.is_some();
        let row = |channels| Vec::with_capacity(if waits { channels } else { 0 });
        Self {
            coded,
            tail: ExactRows::new(store, channels, pages, budget),
            exact_sinks,
            whole: None,
            rewinds: false,
            replaced_deltas: None,
            row: channels.map(row),
        }
    }

    /// The float types that keys and values must fit.
    pub(crate) fn takes(&self) -> [ElementType; 2] {
        // What fits an exact copy fits the codes, too.
        let keys =
            self.exact_sinks.map_or_else(|| self.coded.keys.takes(), |_| self.tail.keys.format().takes());
        [keys, self.coded.values.format().takes()]
    }

    /// Whether a token waits in the tail until it leaves the window, and is coded then.
    fn codes_later(&self) -> bool {
        self.exact_sinks.is_some() && self.tail.values.is_some()
    }

    /// Tokens in the cache.
    pub(crate) fn len(&self) -> usize {
        if self.codes_later() { self.tail.len() } else { self.coded.values.len() }
    }

    /// Appends a token that has been checked ([`takes`](Self::takes)).
    ///
    /// # Errors
    /// As the stores' `push`; some parts may hold the token then, and others not.
    pub(crate) fn push(&mut self, key: &[f32], value: &[f32]) -> Result<(), CoreError> {
        if self.exact_sinks.is_some() {
            self.tail.push(key, value)?;
        }
        if self.codes_later() { Ok(()) } else { self.coded.push(key, value, self.exact_sinks) }
    }

    /// Codes tokens that wait in the tail, until `end` are coded.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn code_until(&mut self, end: usize) -> Result<(), CoreError> {
        if !self.codes_later() {
            return Ok(());
        }
        let Self { coded, tail, exact_sinks, whole, replaced_deltas, row: [key, value], .. } = self;
        let ExactRows { keys, values: Some(values) } = tail else { return Ok(()) };
        for token in coded.len()..end {
            if let Some(whole) = *whole
                && let Some(deltas) = coded.keys.keep_small(whole)?
            {
                *replaced_deltas = Some(deltas);
            }
            let (key, value) = (keys.read(token..token + 1, key), values.read(token..token + 1, value));
            coded.push(key, value, *exact_sinks)?;
        }
        Ok(())
    }

    /// Drops exact copies of coded tokens before `kept`. Drops the replaced deltas too, if no truncation that leaves the tokens from `kept` on
    /// exact could bring them back, or the budget cannot pay for them.
    pub(crate) fn trim(&mut self, kept: usize) {
        let end = kept.min(self.coded.len());
        self.tail.rows_mut().for_each(|rows| rows.drop_before(end));
        let coded = self.coded_after_cut(kept);
        let Some(mut deltas) = self.replaced_deltas.take() else { return };
        if self.rewinds && deltas.len() >= coded && pay(&mut deltas, self.coded.values.budget()).is_ok() {
            self.replaced_deltas = Some(deltas);
        }
    }

    /// The deltas of keys that have become whole which have been paid for.
    fn kept_deltas(&self) -> Option<&DeltaMatrix> {
        self.replaced_deltas.as_ref().filter(|deltas| deltas.unpaid() == 0)
    }

    /// The first token that is held.
    pub(crate) fn first(&self) -> usize {
        match self.coded.len() {
            0 if self.codes_later() => self.tail.keys.first(),
            _ => self.coded.values.first(),
        }
    }

    /// Drops tokens before `first`, which no later query attends to, in a cache in which none is coded.
    pub(crate) fn drop_exact(&mut self, first: usize) {
        self.tail.rows_mut().for_each(|rows| rows.drop_before(first));
    }

    /// Drops coded tokens before `first`, which no later query attends to.
    pub(crate) fn drop_coded(&mut self, first: usize) {
        let CodedTokens { keys, values, sinks } = &mut self.coded;
        keys.drop_before(first);
        // The block of deltas that is still open stays, and its values with it.
        values.drop_before(keys.first().min(first));
        // Earlier queries, which may come again, see as sinks what is still held.
        let held = values.first();
        sinks.rows_mut().for_each(|rows| rows.drop_before(held));
        self.replaced_deltas.take_if(|deltas| {
            deltas.drop_before(first);
            deltas.first() != keys.first()
        });
    }

    /// A cache with the same tokens, of which those before `end` are coded, and those before `kept` no longer held exactly; this one has no
    /// codes.
    pub(crate) fn with_codes_until(
        &self,
        end: usize,
        kept: usize,
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let mut head = self.fork(budget)?;
        head.code_until(end)?;
        head.tail = head.tail.in_small_pages(kept, budget)?;
        Ok(head)
    }

    /// The deltas of keys that have become whole, which this head lets go of.
    pub(crate) fn take_deltas(&mut self) -> Option<DeltaMatrix> {
        self.replaced_deltas.take()
    }

    /// Deltas of keys that have become whole, which nobody has been charged.
    pub(crate) fn give_deltas(&mut self, deltas: Option<DeltaMatrix>) {
        self.replaced_deltas = deltas;
    }

    /// The exact tokens from `kept` on, copied into window-sized pages; `None` if they already are, if none is coded, or if the copy would
    /// take more bytes.
    pub(crate) fn small_pages(&self, kept: usize) -> Option<ExactRows> {
        let end = kept.min(self.coded.len());
        if !self.codes_later() || end == 0 || self.tail.keys.page_tokens() <= CachePlan::WINDOW_PAGE_TOKENS {
            return None;
        }
        let small = self.tail.in_small_pages(end, &MemoryBudget::unlimited()).ok();
        small.filter(|tail| tail.bytes() <= self.tail.bytes())
    }

    /// Bytes of the exact `tokens` in pages as a window has them, where those of this cache may be put into such.
    pub(crate) fn growth_of_small_pages(&self, tokens: Range<usize>) -> usize {
        let page = CachePlan::WINDOW_PAGE_TOKENS;
        if !self.codes_later() || self.tail.keys.page_tokens() <= page {
            return 0;
        }
        let empty = |rows: &PagedRows| {
            let first = tokens.start / page * page;
            let unlimited = MemoryBudget::unlimited();
            PagedRows::starting_at(first, rows.channels(), rows.format(), page, &unlimited)
                .growth(tokens.end - first)
        };
        self.tail.rows().map(empty).fold(0, usize::saturating_add)
    }

    /// How many tokens stay coded after a cut that leaves those from `needed` on to be exact.
    pub(crate) fn coded_after_cut(&self, needed: usize) -> usize {
        let coded = self.coded.len();
        if !self.codes_later() {
            return coded;
        }
        // Of a cache that has dropped tokens one stays coded: the next is coded by it.
        let dropped = self.coded.values.first();
        let least = if dropped > 0 { dropped + 1 } else { 0 };
        coded.min(needed.max(self.tail.keys.first()).max(least))
    }

    /// Back to `len` tokens, or to as many as there are, of which at most `coded` are coded.
    pub(crate) fn roll_back(&mut self, len: usize, coded: usize) {
        self.coded.roll_back(len.min(coded));
        for rows in self.tail.rows_mut() {
            let _ = rows.truncate(len.min(rows.len()));
        }
    }

    /// After a [`roll_back`](Self::roll_back): keys that had become whole meanwhile are deltas again, unless someone else has taken the
    /// memory that these need.
    pub(crate) fn restore_deltas(&mut self) {
        let len = self.coded.len();
        let Some(mut deltas) = self.replaced_deltas.take_if(|deltas| len <= deltas.len()) else { return };
        // Cannot fail: it has been longer.
        let _ = deltas.truncate(len);
        if deltas.unpaid() == 0 {
            self.coded.keys = FarKeys::Delta(deltas);
        } else {
            let _ = exchange(&mut self.coded.keys, FarKeys::Delta(deltas));
        }
    }

    /// Bytes that appending `tokens` tokens would charge at most, if the cache then codes those before `coded`.
    pub(crate) fn growth(&self, tokens: usize, coded: usize) -> usize {
        let tail = if self.exact_sinks.is_some() { tokens } else { 0 };
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = if self.codes_later() { coded.saturating_sub(keys.len()) } else { tokens };
        let kept = coded.min(self.exact_sinks.unwrap_or(0).saturating_sub(sinks.len()));
        let tail = self.tail.rows().map(|rows| rows.growth(tail));
        let sinks = sinks.rows().map(|rows| rows.growth(kept));
        // Keys that become whole while someone holds on to their deltas.
        let as_rows = self.whole.map_or(0, |whole| keys.growth_of_rows(coded, self.rewinds, whole));
        let all = tail.chain(sinks).chain([keys.growth(coded), values.growth(coded), as_rows]);
        all.fold(0, usize::saturating_add)
    }

    pub(crate) fn footprint(&self) -> Footprint {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let (keys, table) = keys.bytes();
        let exact = || self.tail.rows().chain(sinks.rows());
        let deltas = self.kept_deltas();
        Footprint {
            keys,
            values: values.held_bytes(),
            window: exact().map(PagedRows::held_bytes).sum::<usize>()
                + deltas.map_or(0, DeltaMatrix::key_bytes),
            bookkeeping: table
                + values.bookkeeping_bytes()
                + exact().map(PagedRows::bookkeeping_bytes).sum::<usize>()
                + deltas.map_or(0, DeltaMatrix::bookkeeping_bytes),
        }
    }

    /// How many channels of all keys change, and of how many; `None` for a store without deltas. Keys that are not coded yet count as they
    /// will be coded.
    pub(crate) fn changes(&self, store: KvStore) -> Option<[usize; 2]> {
        let elements = self.len() * self.coded.keys.channels();
        let FarKeys::Delta(matrix) = &self.coded.keys else {
            return store.is_delta().then_some([elements; 2]);
        };
        let waiting = matrix.len()..self.len();
        if waiting.is_empty() {
            return Some([matrix.nonzeros(), elements]);
        }
        // Of tokens that were dropped before they were coded nothing is known: they count as changed throughout.
        let held = waiting.start.max(self.tail.keys.first())..waiting.end;
        let dropped = (held.start - waiting.start) * matrix.channels();
        let mut scratch = Vec::new();
        Some([dropped + matrix.nonzeros_with(self.tail.keys.read(held, &mut scratch)), elements])
    }
}
