//! The cache of one kv head of hybrid attention.

use std::ops::Range;

use deltallm_core::{
    BLOCK_TOKENS, CachePlan, CoreError, DeltaMatrix, ElementType, Footprint, HeadThresholds, KvStore,
    MemoryBudget, Reservation, SnapshotError, SnapshotReader, SnapshotWriter,
    internal::{PagedRows, RowFormat, Store, exchange, most_key_bytes},
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
    /// Whether tokens can be taken back that have left the window, and with them the exact form of what came after.
    rewinds: bool,
    /// Deltas that `keep_small` replaced by f16 rows: uncharged while the call or step can be undone, then charged for as long as
    /// `exact_rewind` may return to them.
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
    fn new(store: KvStore, thresholds: HeadThresholds, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let channels = thresholds.start().len();
        Ok(match store {
            KvStore::Int8 => {
                Self::Rows(PagedRows::new(channels, RowFormat::Int8, BLOCK_TOKENS, budget).centered())
            }
            KvStore::Compact => Self::Delta(DeltaMatrix::in_steps(thresholds, budget)?),
            float => Self::Delta(DeltaMatrix::new(thresholds, float.exact(), budget)?),
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

    /// The first token that is held.
    fn first(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.first(),
            Self::Rows(rows) => rows.first(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.len(),
            Self::Rows(rows) => rows.len(),
        }
    }

    fn push(&mut self, key: &[f32]) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.push_checked(key),
            Self::Rows(rows) => rows.push_checked(key),
        }
    }

    fn truncate(&mut self, len: usize) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.truncate(len),
            Self::Rows(rows) => rows.truncate(len),
        }
    }

    fn drop_before(&mut self, first: usize) {
        match self {
            Self::Delta(matrix) => matrix.drop_before(first),
            Self::Rows(rows) => rows.drop_before(first),
        }
    }

    fn growth(&self, tokens: usize) -> usize {
        match self {
            Self::Delta(matrix) => matrix.growth(tokens),
            Self::Rows(rows) => rows.growth(tokens),
        }
    }

    /// Bytes that [`keep_small`](Self::keep_small) may charge when `tokens` keys come: nothing, unless the deltas stay, for a fork or because they
    /// are `kept`.
    fn growth_of_whole(&self, tokens: usize, kept: bool) -> usize {
        let Self::Delta(matrix) = self else { return 0 };
        let (channels, held) = (matrix.channels(), matrix.len() - matrix.first());
        let most = most_key_bytes(channels, held + 1);
        let bytes = matrix.key_bytes() + matrix.bookkeeping_bytes();
        let becomes_whole = tokens > 0 && matrix.bytes_with_next() > most
            || tokens > 1 && bytes.saturating_add(matrix.growth(tokens)) > most;
        if becomes_whole && (kept || matrix.is_shared()) {
            most_key_bytes(channels, held.saturating_add(tokens))
        } else {
            0
        }
    }

    /// Makes sure that one more key takes no more than [`most_key_bytes`]: keys whose deltas would are held whole, in f16. They are
    /// of that type already, exactly, so what comes in is off by no more than it was. Returns the deltas that are no longer held.
    fn keep_small(&mut self) -> Result<Option<DeltaMatrix>, CoreError> {
        let Self::Delta(matrix) = self else { return Ok(None) };
        let channels = matrix.channels();
        if matrix.bytes_with_next() <= most_key_bytes(channels, matrix.len() - matrix.first() + 1) {
            return Ok(None);
        }
        let unlimited = MemoryBudget::unlimited();
        let first = matrix.first();
        let mut rows = PagedRows::starting_at(first, channels, ElementType::F16, BLOCK_TOKENS, &unlimited);
        let mut keys = Vec::new();
        for block in first / BLOCK_TOKENS..matrix.blocks() {
            matrix.reconstruct(block, &mut keys);
            keys.iter_mut().for_each(|x| *x = x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()));
            keys.chunks_exact(channels).try_for_each(|key| rows.push(key))?;
        }
        Ok(match exchange(self, Self::Rows(rows))? {
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

impl Store for FarKeys {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        Ok(match self {
            Self::Delta(matrix) => Self::Delta(Store::fork(matrix, budget)?),
            Self::Rows(rows) => Self::Rows(rows.fork(budget)?),
        })
    }

    fn uncharge(&mut self) -> Reservation {
        match self {
            Self::Delta(matrix) => matrix.uncharge(),
            Self::Rows(rows) => rows.uncharge(),
        }
    }

    fn unpaid(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.unpaid(),
            Self::Rows(rows) => rows.unpaid(),
        }
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        match self {
            Self::Delta(matrix) => matrix.charge_with(charge),
            Self::Rows(rows) => rows.charge_with(charge),
        }
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        match self {
            Self::Delta(matrix) => {
                writer.text("deltas");
                matrix.save(writer);
            }
            Self::Rows(rows) => {
                writer.text("whole keys");
                rows.save(writer);
            }
        }
    }

    /// Keys that have become whole in f16 may stand where deltas are expected.
    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        match (&*reader.text()?, self) {
            ("deltas", Self::Delta(matrix)) => Ok(Self::Delta(matrix.load(reader)?)),
            ("whole keys", Self::Rows(rows)) => Ok(Self::Rows(rows.load(reader)?)),
            ("whole keys", Self::Delta(matrix)) => {
                let rows = PagedRows::new(matrix.channels(), ElementType::F16, BLOCK_TOKENS, matrix.budget());
                Ok(Self::Rows(rows.load(reader)?))
            }
            (got, _) => {
                let (expected, got) = ("as this cache holds them".to_owned(), got.to_owned());
                Err(SnapshotError::Other { what: "far keys", expected, got })
            }
        }
    }
}

impl ExactRows {
    /// Without tokens; a key and a value have `channels`.
    fn new(store: KvStore, channels: [usize; 2], page_tokens: usize, budget: &MemoryBudget) -> Self {
        let [keys, values] =
            channels.map(|channels| PagedRows::new(channels, store.exact(), page_tokens, budget));
        Self { keys, values: store.is_quantised().then_some(values) }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn push(&mut self, key: &[f32], value: &[f32]) -> Result<(), CoreError> {
        self.keys.push_checked(key)?;
        self.values.as_mut().map_or(Ok(()), |values| values.push_checked(value))
    }

    fn bytes(&self) -> usize {
        self.rows().map(|rows| rows.held_bytes() + rows.bookkeeping_bytes()).sum()
    }

    /// Whether a fork holds some of it, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.rows().any(PagedRows::is_shared)
    }

    fn rows(&self) -> impl Iterator<Item = &PagedRows> {
        [Some(&self.keys), self.values.as_ref()].into_iter().flatten()
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut PagedRows> {
        [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten()
    }

    /// The tokens from `kept` on, in pages as a window has them.
    fn in_small_pages(&self, kept: usize, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let page = CachePlan::WINDOW_PAGE_TOKENS;
        let first = (kept / page * page).max(self.keys.first());
        let copy = |rows: &PagedRows| rows.copied(first..rows.len(), rows.format(), page, budget);
        Ok(Self { keys: copy(&self.keys)?, values: self.values.as_ref().map(copy).transpose()? })
    }

    /// The same in f16, with the values of all tokens in `values`. Tokens whose values have been dropped are not copied.
    fn to_quantised(&self, values: &PagedRows, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let end = self.keys.len();
        let first = self.keys.first().max(values.first()).min(end);
        let copy =
            |rows: &PagedRows| rows.copied(first..end, ElementType::F16, self.keys.page_tokens(), budget);
        Ok(Self { keys: copy(&self.keys)?, values: Some(copy(values)?) })
    }
}

impl Store for ExactRows {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let values = self.values.as_ref().map(|values| values.fork(budget)).transpose()?;
        Ok(Self { keys: self.keys.fork(budget)?, values })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.keys.uncharge();
        self.values.iter_mut().for_each(|values| all.merge(values.uncharge()));
        all
    }

    fn unpaid(&self) -> usize {
        self.rows().map(PagedRows::unpaid).sum()
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        self.rows_mut().for_each(|rows| rows.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        writer.count(self.keys.page_tokens());
        self.rows().for_each(|rows| rows.save(writer));
    }

    /// Pages are of the size they have here, or of a window's.
    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let small = CachePlan::WINDOW_PAGE_TOKENS;
        let page_tokens = match reader.count("tokens in a page", usize::MAX)? {
            got if got == self.keys.page_tokens() || got == small && got < self.keys.page_tokens() => got,
            got => return Err(invalid("tokens in a page", "as many as in a window's or as here", got)),
        };
        let load = |rows: &PagedRows, reader: &mut SnapshotReader| {
            PagedRows::new(rows.channels(), rows.format(), page_tokens, rows.budget()).load(reader)
        };
        let keys = load(&self.keys, reader)?;
        let values = self.values.as_ref().map(|values| load(values, reader)).transpose()?;
        let bounds = |rows: &PagedRows| [rows.first(), rows.len()];
        match &values {
            Some(values) if bounds(values) != bounds(&keys) => {
                Err(invalid("exact values", "as many as exact keys", values.len()))
            }
            _ => {
                let loaded = Self { keys, values };
                // They will be coded.
                loaded.rows().try_for_each(|rows| rows.check_all(rows.format().takes()))?;
                Ok(loaded)
            }
        }
    }
}

fn invalid(what: &'static str, expected: &'static str, got: usize) -> SnapshotError {
    SnapshotError::Invalid { what, expected, got: got as u64 }
}

impl CodedTokens {
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Codes the next token; if it is one of the first `kept`, it is kept exactly too.
    fn push(&mut self, key: &[f32], value: &[f32], kept: Option<usize>) -> Result<(), CoreError> {
        self.keys.push(key)?;
        if kept.is_some_and(|kept| self.sinks.len() < kept) {
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
        budget: &MemoryBudget,
    ) -> Result<Self, CoreError> {
        let sink_pages = CachePlan::sink_page_tokens(kept.unwrap_or(0));
        let keys = FarKeys::new(store, thresholds, budget)?;
        let coded = CodedTokens {
            values: PagedRows::new(value_dim, RowFormat::of(store), BLOCK_TOKENS, budget),
            sinks: ExactRows::new(store, [keys.channels(), value_dim], sink_pages, budget),
            keys,
        };
        Ok(Self { bounded, ..Self::with_codes(coded, store, kept, budget) })
    }

    /// The same, in which deltas whose keys become whole are kept for a rewind, or not.
    pub(crate) fn that_rewinds(self, rewinds: bool) -> Self {
        Self { rewinds, ..self }
    }

    /// A cache whose tail is still empty.
    fn with_codes(coded: CodedTokens, store: KvStore, kept: Option<usize>, budget: &MemoryBudget) -> Self {
        let channels = [coded.keys.channels(), coded.values.channels()];
        // A window that is held for its own sake has small pages. What is not coded yet lies as in a dense cache.
        let pages = if store.is_quantised() { BLOCK_TOKENS } else { CachePlan::WINDOW_PAGE_TOKENS };
        let waits = store.is_quantised() && kept.is_some();
        let row = |channels| Vec::with_capacity(if waits { channels } else { 0 });
        Self {
            coded,
            tail: ExactRows::new(store, channels, pages, budget),
            kept,
            bounded: false,
            rewinds: false,
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
    pub(crate) fn push(&mut self, key: &[f32], value: &[f32]) -> Result<(), CoreError> {
        if self.kept.is_some() {
            self.tail.push(key, value)?;
        }
        if self.codes_later() { Ok(()) } else { self.coded.push(key, value, self.kept) }
    }

    /// Codes tokens that wait in the tail, until `end` are coded.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub(crate) fn code_until(&mut self, end: usize) -> Result<(), CoreError> {
        if !self.codes_later() {
            return Ok(());
        }
        let Self { coded, tail, kept, bounded, was, row: [key, value], .. } = self;
        let ExactRows { keys, values: Some(values) } = tail else { return Ok(()) };
        for token in coded.len()..end {
            if *bounded && let Some(deltas) = coded.keys.keep_small()? {
                *was = Some(deltas);
            }
            let (key, value) = (keys.read(token..token + 1, key), values.read(token..token + 1, value));
            coded.push(key, value, *kept)?;
        }
        Ok(())
    }

    /// Drops exact copies of coded tokens before `kept`. Drops the replaced deltas too, if no truncation that leaves the tokens from `kept` on
    /// exact could bring them back, or the budget cannot pay for them.
    pub(crate) fn trim(&mut self, kept: usize) {
        let end = kept.min(self.coded.len());
        self.tail.rows_mut().for_each(|rows| rows.drop_before(end));
        let coded = self.coded_after_cut(kept);
        let Some(mut deltas) = self.was.take() else { return };
        if self.rewinds && deltas.len() >= coded && pay(&mut deltas, self.coded.values.budget()) {
            self.was = Some(deltas);
        }
    }

    /// The deltas of keys that have become whole which have been paid for.
    fn kept_deltas(&self) -> Option<&DeltaMatrix> {
        self.was.as_ref().filter(|deltas| deltas.unpaid() == 0)
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
        values.drop_before(first);
        // Earlier queries, which may come again, see as sinks what is still held.
        let held = values.first();
        sinks.rows_mut().for_each(|rows| rows.drop_before(held));
        self.was.take_if(|deltas| {
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
        self.was.take()
    }

    /// Deltas of keys that have become whole, which nobody has been charged.
    pub(crate) fn give_deltas(&mut self, deltas: Option<DeltaMatrix>) {
        self.was = deltas;
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
        let Some(mut deltas) = self.was.take_if(|deltas| len <= deltas.len()) else { return };
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
        let tail = if self.kept.is_some() { tokens } else { 0 };
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = if self.codes_later() { coded.saturating_sub(keys.len()) } else { tokens };
        let kept = coded.min(self.kept.unwrap_or(0).saturating_sub(sinks.len()));
        let tail = self.tail.rows().map(|rows| rows.growth(tail));
        let sinks = sinks.rows().map(|rows| rows.growth(kept));
        // Keys that become whole while someone holds on to their deltas.
        let whole = if self.bounded { keys.growth_of_whole(coded, self.rewinds) } else { 0 };
        let all = tail.chain(sinks).chain([keys.growth(coded), values.growth(coded), whole]);
        all.fold(0, usize::saturating_add)
    }

    pub(crate) fn footprint(&self) -> Footprint {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let (keys, table) = keys.bytes();
        let exact = || self.tail.rows().chain(sinks.rows());
        let was = self.kept_deltas();
        Footprint {
            keys,
            values: values.held_bytes(),
            window: exact().map(PagedRows::held_bytes).sum::<usize>() + was.map_or(0, DeltaMatrix::key_bytes),
            bookkeeping: table
                + values.bookkeeping_bytes()
                + exact().map(PagedRows::bookkeeping_bytes).sum::<usize>()
                + was.map_or(0, DeltaMatrix::bookkeeping_bytes),
        }
    }

    /// Checks that every number can be stored in a narrower float type.
    pub(crate) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        keys.deltas().map_or(Ok(()), |matrix| matrix.check_narrow(element))?;
        let mut rows = self.tail.rows().chain(sinks.rows()).chain([values]);
        rows.try_for_each(|rows| rows.check_narrow(element))
    }

    /// Bytes that [`narrow`](Self::narrow) charges before it gives any back.
    pub(crate) fn narrow_growth(&self, element: ElementType) -> usize {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let rows = self.tail.rows().chain(sinks.rows()).chain([values]);
        let keys = keys.deltas().map_or(0, |matrix| matrix.narrow_growth(element));
        keys + rows.map(|rows| rows.narrow_growth(element)).sum::<usize>()
    }

    /// Converts a float store to a narrower float type; `charge` pays for what [`narrow_growth`](Self::narrow_growth) says.
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
    pub(crate) fn to_compact(&self, needed: usize, budget: &MemoryBudget) -> Result<Option<Self>, CoreError> {
        let CodedTokens { keys: FarKeys::Delta(matrix), values, sinks } = &self.coded else {
            return Ok(None);
        };
        let coded = CodedTokens {
            keys: FarKeys::Delta(matrix.to_steps(budget)?),
            values: values.converted(RowFormat::of(KvStore::Compact), budget)?,
            sinks: sinks.to_quantised(values, budget)?,
        };
        let mut copy = Self::with_codes(coded, KvStore::Compact, self.kept, budget);
        copy.tail = self.tail.to_quantised(values, budget)?;
        if copy.codes_later() {
            // Of a cache that has dropped tokens one stays coded: the next is coded by it.
            let least = if values.first() > 0 { values.first() + 1 } else { 0 };
            copy.coded.roll_back(needed.max(copy.tail.keys.first()).max(least));
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

/// Charges what nobody has been charged; false if there is no memory for it.
fn pay(store: &mut impl Store, budget: &MemoryBudget) -> bool {
    let mut charge = budget.reservation();
    let paid = charge.grow(store.unpaid()).is_ok();
    if paid {
        store.charge_with(&mut charge);
    }
    paid
}

impl Store for HybridHead {
    fn fork(&self, budget: &MemoryBudget) -> Result<Self, CoreError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = CodedTokens {
            keys: keys.fork(budget)?,
            values: values.fork(budget)?,
            sinks: sinks.fork(budget)?,
        };
        let row = self.row.each_ref().map(|row| Vec::with_capacity(row.capacity()));
        // Where there is no memory the fork does without. Of an open step they are not charged, and what is not charged is not shared.
        let was = match self.kept_deltas() {
            Some(deltas) => Store::fork(deltas, budget).ok(),
            None => self.was.as_ref().and_then(|deltas| deltas.copied().ok()),
        };
        Ok(Self { coded, tail: self.tail.fork(budget)?, was, row, ..*self })
    }

    fn uncharge(&mut self) -> Reservation {
        let mut all = self.coded.keys.uncharge();
        all.merge(self.coded.values.uncharge());
        all.merge(self.coded.sinks.uncharge());
        all.merge(self.tail.uncharge());
        self.was.iter_mut().for_each(|deltas| all.merge(deltas.uncharge()));
        all
    }

    fn unpaid(&self) -> usize {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let was = self.was.as_ref().map_or(0, DeltaMatrix::unpaid);
        keys.unpaid() + values.unpaid() + sinks.unpaid() + self.tail.unpaid() + was
    }

    fn charge_with(&mut self, charge: &mut Reservation) {
        self.coded.keys.charge_with(charge);
        self.coded.values.charge_with(charge);
        self.coded.sinks.charge_with(charge);
        self.tail.charge_with(charge);
        self.was.iter_mut().for_each(|deltas| deltas.charge_with(charge));
    }

    fn save(&self, writer: &mut SnapshotWriter) {
        self.coded.keys.save(writer);
        self.coded.values.save(writer);
        self.coded.sinks.save(writer);
        self.tail.save(writer);
        let was = self.kept_deltas();
        writer.count(usize::from(was.is_some()));
        was.into_iter().for_each(|deltas| deltas.save(writer));
    }

    fn load(&self, reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let coded = CodedTokens {
            keys: self.coded.keys.load(reader)?,
            values: self.coded.values.load(reader)?,
            sinks: self.coded.sinks.load(reader)?,
        };
        let row = self.row.each_ref().map(|row| Vec::with_capacity(row.capacity()));
        let tail = self.tail.load(reader)?;
        let was = match (reader.count("deltas of whole keys", 1)?, self.coded.keys.deltas()) {
            (0, _) => None,
            (_, Some(deltas)) => {
                let empty = Store::fork(deltas, &MemoryBudget::unlimited())?;
                let mut loaded = empty.load(reader)?;
                drop(loaded.uncharge());
                Some(loaded)
            }
            (got, None) => return Err(invalid("deltas of whole keys", "none", got)),
        };
        let mut head = Self { coded, tail, was, row, ..*self };
        if !self.bounded && self.coded.keys.deltas().is_some() && head.coded.keys.deltas().is_none() {
            return Err(invalid("whole keys", "deltas", head.coded.keys.len()));
        }
        head.check_parts()?;
        head.was.take_if(|deltas| !pay(deltas, self.coded.values.budget()));
        Ok(head)
    }
}

impl HybridHead {
    /// Checks that the parts of a cache that has been loaded fit each other.
    fn check_parts(&self) -> Result<(), SnapshotError> {
        let CodedTokens { keys, values, sinks } = &self.coded;
        let coded = keys.len();
        if values.len() != coded || values.first() != keys.first() {
            return Err(invalid("values", "as many as keys", values.len()));
        }
        if sinks.len() != self.kept.unwrap_or(0).min(coded) {
            return Err(invalid("sinks", "as many as the settings say", sinks.len()));
        }
        let were = |deltas: &DeltaMatrix| {
            keys.deltas().is_none() && deltas.len() < coded && deltas.first() == keys.first()
        };
        if !self.was.as_ref().is_none_or(were) {
            return Err(invalid("deltas of whole keys", "some of the whole keys", coded));
        }
        let tail = &self.tail.keys;
        let fits = match self.kept {
            None => tail.is_empty(),
            // Between what is coded and what is exact there is no gap.
            Some(_) if self.codes_later() => tail.len() >= coded && (coded == 0 || tail.first() <= coded),
            Some(_) => tail.len() == coded,
        };
        if fits { Ok(()) } else { Err(invalid("exact keys", "those of the window", tail.len())) }
    }

    /// Whether all of this head's tokens from `first` on are held.
    pub(crate) fn holds_from(&self, first: usize) -> bool {
        let sinks = self.coded.sinks.rows().map(PagedRows::first);
        self.first() <= first && sinks.filter(|_| self.coded.sinks.len() > first).all(|sink| sink <= first)
    }
}
