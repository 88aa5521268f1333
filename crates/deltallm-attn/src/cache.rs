//! The cache of one kv head of hybrid attention.

use deltallm_core::{
    BLOCK_TOKENS, CachePlan, CoreError, DeltaMatrix, ElementType, Footprint, HeadThresholds, KvStore,
    MemoryBudget, Reservation,
    internal::{PagedRows, RowFormat, most_key_bytes},
};
use half::f16;

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
    kept: Option<usize>,
    /// Whether keys are held whole where their deltas would take more than f16.
    bounded: bool,
    /// The deltas of keys that have become whole in a call or step that may be taken back. Not charged.
    was: Option<DeltaMatrix>,
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

/// The keys of a head that are coded.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each kv head")]
pub(crate) enum FarKeys {
    Delta(DeltaMatrix),
    /// In 8 bits, or in f16 where deltas would take more.
    Rows(PagedRows),
}

/// Exact keys, and their values where far values are not exact.
#[derive(Debug)]
pub(crate) struct ExactRows {
    pub(crate) keys: PagedRows,
    pub(crate) values: Option<PagedRows>,
}

impl FarKeys {
    fn new(store: KvStore, thresholds: HeadThresholds) -> Result<Self, CoreError> {
        let channels = thresholds.start().len();
        Ok(match store {
            KvStore::Int8 => Self::Rows(PagedRows::new(channels, RowFormat::Int8, BLOCK_TOKENS).centered()),
            KvStore::Compact => Self::Delta(DeltaMatrix::in_steps(thresholds)?),
            float => Self::Delta(DeltaMatrix::new(thresholds, float.exact())?),
        })
    }

    /// The deltas, unless keys are coded whole.
    pub(crate) fn deltas(&self) -> Option<&DeltaMatrix> {
        match self {
            Self::Delta(matrix) => Some(matrix),
            _ => None,
        }
    }

    /// The float type whose numbers fit.
    fn takes(&self) -> ElementType {
        match self {
            Self::Delta(matrix) => matrix.takes(),
            Self::Rows(rows) => rows.format().takes(),
        }
    }

    fn channels(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.channels(),
            Self::Rows(rows) => rows.channels(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    fn push(&mut self, key: &[f32], charge: &mut Reservation) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.push_checked(key, charge),
            Self::Rows(rows) => rows.push_checked(key, charge),
        }
    }

    fn truncate(&mut self, len: usize, charge: &mut Reservation) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.truncate(len, charge),
            Self::Rows(rows) => rows.truncate(len, charge),
        }
    }

    fn drop_before(&mut self, first: usize, charge: &mut Reservation) {
        match self {
            Self::Delta(matrix) => matrix.drop_before(first, charge),
            Self::Rows(rows) => rows.drop_before(first, charge),
        }
    }

    fn growth(&self, tokens: usize) -> usize {
        match self {
            Self::Delta(matrix) => matrix.growth(tokens),
            Self::Rows(rows) => rows.growth(tokens),
        }
    }

    /// Makes sure that one more key takes no more than [`most_key_bytes`]: keys whose deltas would are held whole, in f16. They are
    /// of that type already, exactly, so what comes in is off by no more than it was. Returns the deltas that are no longer held.
    fn keep_small(&mut self, charge: &mut Reservation) -> Result<Option<DeltaMatrix>, CoreError> {
        let Self::Delta(matrix) = self else { return Ok(None) };
        let channels = matrix.channels();
        if matrix.bytes_with_next() <= most_key_bytes(channels, matrix.len() - matrix.first() + 1) {
            return Ok(None);
        }
        let held = matrix.key_bytes() + matrix.bookkeeping_bytes();
        let mut whole = MemoryBudget::unlimited().reservation();
        let mut rows = PagedRows::starting_at(matrix.first(), channels, ElementType::F16, BLOCK_TOKENS);
        let mut keys = Vec::new();
        for block in matrix.first() / BLOCK_TOKENS..matrix.blocks() {
            matrix.reconstruct(block, &mut keys);
            keys.iter_mut().for_each(|x| *x = x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            keys.chunks_exact(channels).try_for_each(|key| rows.push(key, &mut whole))?;
        }
        charge.grow(whole.bytes().saturating_sub(held))?;
        charge.shrink(held.saturating_sub(whole.bytes()));
        Ok(match std::mem::replace(self, Self::Rows(rows)) {
            Self::Delta(deltas) => Some(deltas),
            Self::Rows(_) => None,
        })
    }

    /// Bytes of the keys, and of the table of their blocks.
    fn bytes(&self) -> (usize, usize) {
        match self {
            Self::Delta(matrix) => (matrix.key_bytes(), matrix.bookkeeping_bytes()),
            Self::Rows(rows) => (rows.held_bytes(), rows.bookkeeping_bytes()),
        }
    }
}

impl ExactRows {
    /// Without tokens; a key and a value have `channels`.
    fn new(store: KvStore, channels: [usize; 2], page_tokens: usize) -> Self {
        let [keys, values] = channels.map(|channels| PagedRows::new(channels, store.exact(), page_tokens));
        Self { keys, values: store.is_quantised().then_some(values) }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn push(&mut self, key: &[f32], value: &[f32], charge: &mut Reservation) -> Result<(), CoreError> {
        self.keys.push_checked(key, charge)?;
        self.values.as_mut().map_or(Ok(()), |values| values.push_checked(value, charge))
    }

    fn bytes(&self) -> usize {
        self.rows().map(|rows| rows.held_bytes() + rows.bookkeeping_bytes()).sum()
    }

    fn rows(&self) -> impl Iterator<Item = &PagedRows> {
        [Some(&self.keys), self.values.as_ref()].into_iter().flatten()
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut PagedRows> {
        [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten()
    }

    /// The tokens from `needed` on, in pages as a window has them.
    fn in_small_pages(&self, needed: usize, charge: &mut Reservation) -> Result<Self, CoreError> {
        let page = CachePlan::WINDOW_PAGE_TOKENS;
        let first = (needed / page * page).max(self.keys.first());
        let mut copy = |rows: &PagedRows| rows.copied(first..rows.len(), rows.format(), page, charge);
        Ok(Self { keys: copy(&self.keys)?, values: self.values.as_ref().map(copy).transpose()? })
    }

    /// The same in f16, with the values of all tokens in `values`. Tokens whose values have been dropped are not copied.
    fn to_quantised(&self, values: &PagedRows, charge: &mut Reservation) -> Result<Self, CoreError> {
        let end = self.keys.len();
        let first = self.keys.first().max(values.first()).min(end);
        let mut copy =
            |rows: &PagedRows| rows.copied(first..end, ElementType::F16, self.keys.page_tokens(), charge);
        Ok(Self { keys: copy(&self.keys)?, values: Some(copy(values)?) })
    }
}

impl CodedTokens {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Codes the next token; if it is one of the first `kept`, it is kept exactly too.
    fn push(
        &mut self,
        key: &[f32],
        value: &[f32],
        kept: Option<usize>,
        charge: &mut Reservation,
    ) -> Result<(), CoreError> {
        self.keys.push(key, charge)?;
        if kept.is_some_and(|kept| self.sinks.len() < kept) {
            self.sinks.push(key, value, charge)?;
        }
        self.values.push_checked(value, charge)
    }

    /// Back to `len` tokens, or to as many as there are.
    fn roll_back(&mut self, len: usize, charge: &mut Reservation) {
        // None of these can fail: none is asked for more than it holds.
        let _ = self.keys.truncate(len.min(self.keys.len()), charge);
        for rows in self.sinks.rows_mut().chain([&mut self.values]) {
            let _ = rows.truncate(len.min(rows.len()), charge);
        }
    }
}

impl HybridHead {
    /// An empty cache with room for nothing yet. `kept` is the number of first tokens to be kept exactly beside a window, or
    /// `None` if no token is; `bounded` says whether keys may be held whole where deltas take more than f16.
    ///
    /// # Errors
    /// For thresholds that are not numbers >= 0.
    pub(crate) fn new(
        store: KvStore,
        thresholds: HeadThresholds,
        value_dim: usize,
        kept: Option<usize>,
        bounded: bool,
    ) -> Result<Self, CoreError> {
        let sink_pages = CachePlan::sink_page_tokens(kept.unwrap_or(0));
        let keys = FarKeys::new(store, thresholds)?;
        let coded = CodedTokens {
            values: PagedRows::new(value_dim, RowFormat::of(store), BLOCK_TOKENS),
            sinks: ExactRows::new(store, [keys.channels(), value_dim], sink_pages),
            keys,
        };
        Ok(Self { bounded, ..Self::with_codes(coded, store, kept) })
    }

    /// A cache whose tail is still empty.
    fn with_codes(coded: CodedTokens, store: KvStore, kept: Option<usize>) -> Self {
        let channels = [coded.keys.channels(), coded.values.channels()];
        // A window that is held for its own sake has small pages. What is not coded yet lies as in a dense cache.
        let pages = if store.is_quantised() { BLOCK_TOKENS } else { CachePlan::WINDOW_PAGE_TOKENS };
        let waits = store.is_quantised() && kept.is_some();
        let row = |channels| Vec::with_capacity(if waits { channels } else { 0 });
        Self {
            coded,
            tail: ExactRows::new(store, channels, pages),
            kept,
            bounded: false,
            was: None,
            row: channels.map(row),
        }
    }

    /// The float types that keys and values must fit.
    pub(crate) fn takes(&self) -> [ElementType; 2] {
        // What fits an exact copy fits the codes, too.
        let keys = self.kept.map_or_else(|| self.coded.keys.takes(), |_| self.tail.keys.format().takes());
        [keys, self.coded.values.format().takes()]
    }

    /// Whether a token waits in the tail until it leaves the window, and is coded then.
    fn codes_later(&self) -> bool {
        self.kept.is_some() && self.tail.values.is_some()
    }

    /// Tokens in the cache.
    pub(crate) fn len(&self) -> usize {
        if self.codes_later() { self.tail.len() } else { self.coded.values.len() }
    }

    /// Appends a token that has been checked ([`takes`](Self::takes)).
    ///
    /// # Errors
    /// As the stores' `push`; some parts may hold the token then, and others not.
    pub(crate) fn push(
        &mut self,
        key: &[f32],
        value: &[f32],
        charge: &mut Reservation,
    ) -> Result<(), CoreError> {
        if self.kept.is_some() {
            self.tail.push(key, value, charge)?;
        }
        if self.codes_later() { Ok(()) } else { self.coded.push(key, value, self.kept, charge) }
    }

    /// Codes tokens that wait in the tail, until `end` are coded.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn code_until(&mut self, end: usize, charge: &mut Reservation) -> Result<(), CoreError> {
        if !self.codes_later() {
            return Ok(());
        }
        let Self { coded, tail, kept, bounded, was, row: [key, value] } = self;
        let ExactRows { keys, values: Some(values) } = tail else { return Ok(()) };
        for token in coded.len()..end {
            if *bounded && let Some(deltas) = coded.keys.keep_small(charge)? {
                *was = Some(deltas);
            }
            let (key, value) = (keys.read(token..token + 1, key), values.read(token..token + 1, value));
            coded.push(key, value, *kept, charge)?;
        }
        Ok(())
    }

    /// Drops exact copies of tokens before `needed`, as far as they are coded.
    pub(crate) fn trim(&mut self, needed: usize, charge: &mut Reservation) {
        self.was = None;
        let end = needed.min(self.coded.len());
        if self.codes_later() && end > 0 && self.tail.keys.page_tokens() > CachePlan::WINDOW_PAGE_TOKENS {
            self.take_small_pages(end, charge);
        }
        self.tail.rows_mut().for_each(|rows| rows.drop_before(end, charge));
    }

    /// The first token that is held.
    pub(crate) fn first(&self) -> usize {
        match self.coded.len() {
            0 if self.codes_later() => self.tail.keys.first(),
            _ => self.coded.values.first(),
        }
    }

    /// Drops tokens before `first`, which no later query attends to, in a cache in which none is coded.
    pub(crate) fn drop_exact(&mut self, first: usize, charge: &mut Reservation) {
        self.tail.rows_mut().for_each(|rows| rows.drop_before(first, charge));
    }

    /// Drops coded tokens before `first`, which no later query attends to.
    pub(crate) fn drop_coded(&mut self, first: usize, charge: &mut Reservation) {
        let CodedTokens { keys, values, sinks } = &mut self.coded;
        keys.drop_before(first, charge);
        values.drop_before(first, charge);
        // Earlier queries, which may come again, see as sinks what is still held.
        let held = values.first();
        sinks.rows_mut().for_each(|rows| rows.drop_before(held, charge));
    }

    /// Codes tokens of a cache that has no codes, those before `end`, and drops their exact copies. The cache must be one that
    /// is smaller then; memory that this takes for a moment is not charged.
    pub(crate) fn begin_codes(&mut self, end: usize, charge: &mut Reservation) {
        let mut uncharged = MemoryBudget::unlimited().reservation();
        // Neither can fail: what is in the tail can be coded, and no budget says no.
        let _ = self.code_until(end, &mut uncharged);
        if let Ok(tail) = self.tail.in_small_pages(end, &mut uncharged) {
            self.tail = tail;
        }
        self.was = None;
        charge.shrink(charge.bytes().saturating_sub(self.footprint().total()));
    }

    /// Copies the tokens from `needed` on into pages as a window has them, unless these take more.
    fn take_small_pages(&mut self, needed: usize, charge: &mut Reservation) {
        let (held, mut copied) = (self.tail.bytes(), MemoryBudget::unlimited().reservation());
        if let Ok(tail) = self.tail.in_small_pages(needed, &mut copied)
            && copied.bytes() <= held
        {
            self.tail = tail;
            charge.shrink(held - copied.bytes());
        }
    }

    /// Back to `len` tokens, or to as many as there are, of which at most `coded` are coded.
    pub(crate) fn roll_back(&mut self, len: usize, coded: usize, charge: &mut Reservation) {
        self.coded.roll_back(len.min(coded), charge);
        for rows in self.tail.rows_mut() {
            let _ = rows.truncate(len.min(rows.len()), charge);
        }
    }

    /// After a [`roll_back`](Self::roll_back): keys that had become whole meanwhile are deltas again, unless someone else has taken the
    /// memory that these need.
    pub(crate) fn restore_deltas(&mut self, charge: &mut Reservation) {
        let len = self.coded.len();
        let Some(mut deltas) = self.was.take_if(|deltas| len <= deltas.len()) else { return };
        // Cannot fail, and gives nothing back, because deltas that are not held are not charged.
        let _ = deltas.truncate(len, &mut MemoryBudget::unlimited().reservation());
        let (keys, table) = self.coded.keys.bytes();
        let (held, before) = (keys + table, deltas.key_bytes() + deltas.bookkeeping_bytes());
        if charge.grow(before.saturating_sub(held)).is_ok() {
            charge.shrink(held.saturating_sub(before));
            self.coded.keys = FarKeys::Delta(deltas);
        }
    }

    /// Bytes that appending `tokens` tokens would charge at most, if the cache then codes those before `coded`.
    pub(crate) fn growth(&self, tokens: usize, coded: usize) -> usize {
        let tail = if self.kept.is_some() { tokens } else { 0 };
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = if self.codes_later() { coded.saturating_sub(keys.len()) } else { tokens };
        let kept = coded.min(self.kept.unwrap_or(0).saturating_sub(sinks.len()));
        let tail = self.tail.rows().map(|rows| rows.growth(tail));
        let sinks = sinks.rows().map(|rows| rows.growth(kept));
        let all = tail.chain(sinks).chain([keys.growth(coded), values.growth(coded)]);
        all.fold(0, usize::saturating_add)
    }

    pub(crate) fn footprint(&self) -> Footprint {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let (keys, table) = keys.bytes();
        let exact = || self.tail.rows().chain(sinks.rows());
        Footprint {
            keys,
            values: values.held_bytes(),
            window: exact().map(PagedRows::held_bytes).sum(),
            bookkeeping: table
                + values.bookkeeping_bytes()
                + exact().map(PagedRows::bookkeeping_bytes).sum::<usize>(),
        }
    }

    /// Checks that every number can be stored in a narrower float type.
    pub(crate) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        keys.deltas().map_or(Ok(()), |matrix| matrix.check_narrow(element))?;
        let mut rows = self.tail.rows().chain(sinks.rows()).chain([values]);
        rows.try_for_each(|rows| rows.check_narrow(element))
    }

    /// Converts a float store to a narrower float type.
    pub(crate) fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        let CodedTokens { keys, values, sinks } = &mut self.coded;
        if let FarKeys::Delta(matrix) = keys {
            matrix.narrow(element, charge)?;
        }
        let mut rows = self.tail.rows_mut().chain(sinks.rows_mut()).chain([values]);
        rows.try_for_each(|rows| rows.narrow(element, charge))
    }

    /// A copy of a float store in [`KvStore::Compact`], in which exact tokens from `needed` on are not coded; `None` if it is
    /// not one.
    pub(crate) fn to_compact(
        &self,
        needed: usize,
        charge: &mut Reservation,
    ) -> Result<Option<Self>, CoreError> {
        let CodedTokens { keys: FarKeys::Delta(matrix), values, sinks } = &self.coded else {
            return Ok(None);
        };
        let coded = CodedTokens {
            keys: FarKeys::Delta(matrix.to_steps(charge)?),
            values: values.converted(RowFormat::of(KvStore::Compact), charge)?,
            sinks: sinks.to_quantised(values, charge)?,
        };
        let mut copy = Self::with_codes(coded, KvStore::Compact, self.kept);
        copy.tail = self.tail.to_quantised(values, charge)?;
        if copy.codes_later() {
            // Of a cache that has dropped tokens one stays coded: the next is coded by it.
            let least = if values.first() > 0 { values.first() + 1 } else { 0 };
            copy.coded.roll_back(needed.max(copy.tail.keys.first()).max(least), charge);
        }
        Ok(Some(copy))
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
        Some([matrix.nonzeros_with(self.tail.keys.read(waiting, &mut Vec::new())), elements])
    }
}
