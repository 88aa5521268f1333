//! The cache of one kv head of hybrid attention.

use deltallm_core::{
    BLOCK_TOKENS, CachePlan, CoreError, DeltaMatrix, ElementType, Footprint, HeadThresholds, KvStore,
    Reservation,
    internal::{PagedRows, RowFormat},
};

/// Keys and values of one kv head: all of them coded as the store says, and exact copies of some.
#[derive(Debug)]
pub(crate) struct HybridHead {
    pub(crate) keys: FarKeys,
    pub(crate) values: PagedRows,
    /// Exact copies of the latest tokens.
    pub(crate) tail: ExactRows,
    /// Exact copies of the first tokens.
    pub(crate) sinks: ExactRows,
}

/// All keys of a head, coded.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each kv head")]
pub(crate) enum FarKeys {
    Delta(DeltaMatrix),
    Int8(PagedRows),
}

/// Exact keys, and their values where the values of the whole history are not exact.
#[derive(Debug)]
pub(crate) struct ExactRows {
    pub(crate) keys: PagedRows,
    pub(crate) values: Option<PagedRows>,
}

impl FarKeys {
    fn new(store: KvStore, thresholds: HeadThresholds) -> Result<Self, CoreError> {
        let channels = thresholds.start().len();
        Ok(match store {
            KvStore::Int8 => Self::Int8(PagedRows::new(channels, RowFormat::Int8, BLOCK_TOKENS)),
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
            Self::Int8(rows) => rows.format().takes(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Delta(matrix) => matrix.len(),
            Self::Int8(rows) => rows.len(),
        }
    }

    fn push(&mut self, key: &[f32], charge: &mut Reservation) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.push_checked(key, charge),
            Self::Int8(rows) => rows.push_checked(key, charge),
        }
    }

    fn truncate(&mut self, len: usize, charge: &mut Reservation) -> Result<(), CoreError> {
        match self {
            Self::Delta(matrix) => matrix.truncate(len, charge),
            Self::Int8(rows) => rows.truncate(len, charge),
        }
    }

    fn growth(&self, tokens: usize) -> usize {
        match self {
            Self::Delta(matrix) => matrix.growth(tokens),
            Self::Int8(rows) => rows.growth(tokens),
        }
    }

    /// Bytes of the keys, and of the table of their blocks.
    fn bytes(&self) -> (usize, usize) {
        match self {
            Self::Delta(matrix) => (matrix.key_bytes(), matrix.bookkeeping_bytes()),
            Self::Int8(rows) => (rows.held_bytes(), rows.bookkeeping_bytes()),
        }
    }
}

impl ExactRows {
    fn new(store: KvStore, channels: usize, page_tokens: usize) -> Self {
        let rows = || PagedRows::new(channels, store.exact(), page_tokens);
        Self { keys: rows(), values: store.is_quantised().then(rows) }
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn push(&mut self, key: &[f32], value: &[f32], charge: &mut Reservation) -> Result<(), CoreError> {
        self.keys.push_checked(key, charge)?;
        self.values.as_mut().map_or(Ok(()), |values| values.push_checked(value, charge))
    }

    fn rows(&self) -> impl Iterator<Item = &PagedRows> {
        [Some(&self.keys), self.values.as_ref()].into_iter().flatten()
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut PagedRows> {
        [Some(&mut self.keys), self.values.as_mut()].into_iter().flatten()
    }

    /// Exact copies in f16, with the values of all tokens in `values`.
    fn to_quantised(&self, values: &PagedRows, charge: &mut Reservation) -> Result<Self, CoreError> {
        let keys = self.keys.converted(ElementType::F16, charge)?;
        let mut copies =
            PagedRows::starting_at(keys.first(), values.channels(), ElementType::F16, keys.page_tokens());
        let mut scratch = Vec::new();
        for token in keys.first()..keys.len() {
            copies.push(values.read(token..token + 1, &mut scratch), charge)?;
        }
        Ok(Self { keys, values: Some(copies) })
    }
}

impl HybridHead {
    /// An empty cache with room for nothing yet; `sinks` is the number of first tokens to be kept exactly.
    ///
    /// # Errors
    /// For thresholds that are not numbers >= 0.
    pub(crate) fn new(store: KvStore, thresholds: HeadThresholds, sinks: usize) -> Result<Self, CoreError> {
        let channels = thresholds.start().len();
        Ok(Self {
            keys: FarKeys::new(store, thresholds)?,
            values: PagedRows::new(channels, RowFormat::of(store), BLOCK_TOKENS),
            tail: ExactRows::new(store, channels, CachePlan::WINDOW_PAGE_TOKENS),
            sinks: ExactRows::new(store, channels, CachePlan::sink_page_tokens(sinks)),
        })
    }

    /// The float types that keys and values must fit; `exact` as in [`push`](Self::push).
    pub(crate) fn takes(&self, exact: Option<usize>) -> [ElementType; 2] {
        // What fits an exact copy fits the far keys, too.
        let keys = exact.map_or_else(|| self.keys.takes(), |_| self.tail.keys.format().takes());
        [keys, self.values.format().takes()]
    }

    /// Appends a token that has been checked ([`takes`](Self::takes)); `exact` says whether the latest tokens are kept exactly, and how many of the first.
    ///
    /// # Errors
    /// As the stores' `push`; some parts may hold the token then, and others not.
    pub(crate) fn push(
        &mut self,
        key: &[f32],
        value: &[f32],
        exact: Option<usize>,
        charge: &mut Reservation,
    ) -> Result<(), CoreError> {
        self.keys.push(key, charge)?;
        if let Some(sinks) = exact {
            self.tail.push(key, value, charge)?;
            if self.sinks.len() < sinks {
                self.sinks.push(key, value, charge)?;
            }
        }
        self.values.push_checked(value, charge)
    }

    /// Back to `len` tokens, or to as many as there are.
    pub(crate) fn roll_back(&mut self, len: usize, charge: &mut Reservation) {
        // None of these can fail: none is asked for more than it holds.
        let _ = self.keys.truncate(len.min(self.keys.len()), charge);
        let rows = self.tail.rows_mut().chain(self.sinks.rows_mut()).chain([&mut self.values]);
        for rows in rows {
            let _ = rows.truncate(len.min(rows.len()), charge);
        }
    }

    /// Drops exact copies of tokens before `needed`.
    pub(crate) fn drop_before(&mut self, needed: usize, charge: &mut Reservation) {
        self.tail.rows_mut().for_each(|rows| rows.drop_before(needed, charge));
    }

    /// Bytes that appending `tokens` tokens would charge at most; `exact` as in [`push`](Self::push).
    pub(crate) fn growth(&self, tokens: usize, exact: Option<usize>) -> usize {
        let tail = if exact.is_some() { tokens } else { 0 };
        let sinks = tail.min(exact.unwrap_or(0).saturating_sub(self.sinks.len()));
        let tail = self.tail.rows().map(|rows| rows.growth(tail));
        let sinks = self.sinks.rows().map(|rows| rows.growth(sinks));
        let all = tail.chain(sinks).chain([self.keys.growth(tokens), self.values.growth(tokens)]);
        all.fold(0, usize::saturating_add)
    }

    pub(crate) fn footprint(&self) -> Footprint {
        let (keys, table) = self.keys.bytes();
        let exact = || self.tail.rows().chain(self.sinks.rows());
        Footprint {
            keys,
            values: self.values.held_bytes(),
            window: exact().map(PagedRows::held_bytes).sum(),
            bookkeeping: table
                + self.values.bookkeeping_bytes()
                + exact().map(PagedRows::bookkeeping_bytes).sum::<usize>(),
        }
    }

    /// Checks that every number can be stored in a narrower float type.
    pub(crate) fn check_narrow(&self, element: ElementType) -> Result<(), CoreError> {
        self.keys.deltas().map_or(Ok(()), |matrix| matrix.check_narrow(element))?;
        let mut rows = self.tail.rows().chain(self.sinks.rows()).chain([&self.values]);
        rows.try_for_each(|rows| rows.check_narrow(element))
    }

    /// Converts a float store to a narrower float type.
    pub(crate) fn narrow(&mut self, element: ElementType, charge: &mut Reservation) -> Result<(), CoreError> {
        if let FarKeys::Delta(matrix) = &mut self.keys {
            matrix.narrow(element, charge)?;
        }
        let mut rows = self.tail.rows_mut().chain(self.sinks.rows_mut()).chain([&mut self.values]);
        rows.try_for_each(|rows| rows.narrow(element, charge))
    }

    /// A copy of a float store in [`KvStore::Compact`]; `None` if it is not one.
    pub(crate) fn to_compact(&self, charge: &mut Reservation) -> Result<Option<Self>, CoreError> {
        let FarKeys::Delta(matrix) = &self.keys else { return Ok(None) };
        Ok(Some(Self {
            keys: FarKeys::Delta(matrix.to_steps(charge)?),
            values: self.values.converted(RowFormat::of(KvStore::Compact), charge)?,
            tail: self.tail.to_quantised(&self.values, charge)?,
            sinks: self.sinks.to_quantised(&self.values, charge)?,
        }))
    }
}
