//! Exact attention: the baseline everything else is measured against.

use deltallm_core::{
    BLOCK_TOKENS, CoreError, Footprint, HeadSparsity, KvStore, MemoryBudget, SnapshotError, SnapshotReader,
    SnapshotWriter, SparsityStats,
    internal::{PagedRows, RowFormat, TokenStore},
};

use crate::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, HeadsView, HeadsViewMut,
    attend::attend,
    heads::Heads,
    options::Settings,
    output::Output,
    saved,
    segment::{HeadRows, Segment, SegmentKeys, Segments, TokenRows},
    window::{Part, Split, WindowState},
};

/// Exact attention, tiled, with an online softmax and a cache of f32, f16, bf16 or 8 bits.
///
/// ```
/// use deltallm_attn::{
///     AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HeadsView, HeadsViewMut,
/// };
///
/// let mut attention = DenseAttention::new(AttentionShape::new(4, 2, 8)?, AttentionOptions::default())?;
/// let (q, k, v, mut out) = ([1.0; 5 * 4 * 8], [1.0; 5 * 2 * 8], [3.0; 5 * 2 * 8], [0.0; 5 * 4 * 8]);
/// let [q, k, v] = [(&q[..], 4), (&k, 2), (&v, 2)].map(|(data, heads)| HeadsView::new(data, [5, heads, 8]));
/// attention.forward_heads(q?, k?, v?, HeadsViewMut::new(&mut out, [5, 4, 8])?)?;
/// assert!(out.iter().all(|x| (x - 3.0_f32).abs() < 1e-6));
/// assert_eq!(attention.len(), 5);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct DenseAttention {
    options: Settings,
    /// The keys of all heads, and then their values.
    rows: Heads<PagedRows>,
    counts: Vec<HeadSparsity>,
    /// Of the latest call, if anyone asks.
    log_sums: Vec<f32>,
    /// Tokens when a step began that may be taken back.
    step: Option<usize>,
}

impl DenseAttention {
    /// An empty cache.
    ///
    /// # Errors
    /// [`AttentionError::Setting`] for a scale or soft cap that is not a finite positive number, or a mask of no tokens;
    /// [`AttentionError::Store`] for [`KvStore::Compact`]: dense attention has no deltas to keep.
    pub fn new(shape: AttentionShape, options: AttentionOptions) -> Result<Self, AttentionError> {
        let options = Settings::new(shape, options)?;
        let kv_heads = shape.kv_heads();
        if options.store != options.store.dense() {
            let expected = "f32, f16, bf16 or int8 (compact holds deltas: use delta or hybrid attention)";
            return Err(AttentionError::Store { kernel: "dense attention", expected, got: options.store });
        }
        let format = RowFormat::of(options.store);
        let rows = |channels| PagedRows::new(channels, format, BLOCK_TOKENS, &options.budget);
        let keys = (0..kv_heads).map(|_| rows(shape.head_dim()).centered());
        let values = (0..kv_heads).map(|_| rows(shape.value_dim()));
        Ok(Self {
            rows: Heads::new(keys.chain(values).collect()),
            counts: vec![HeadSparsity::default(); kv_heads],
            log_sums: Vec::new(),
            step: None,
            options,
        })
    }

    fn append(&mut self, k: &HeadsView, v: &HeadsView) -> Result<(), CoreError> {
        let Self { rows, options, .. } = self;
        let kv_heads = options.shape.kv_heads();
        let push = |(number, rows): (usize, &mut PagedRows)| {
            let view = if number < kv_heads { k } else { v };
            (0..view.tokens()).try_for_each(|token| rows.push_checked(view.row(token, number % kv_heads)))
        };
        let rows = rows.make_mut(&options.budget)?;
        #[cfg(feature = "rayon")]
        if options.parallel
            && k.tokens() >= deltallm_simd::tuning::LEAST_STORED_TOKENS
            && rayon::current_num_threads() > 1
        {
            use rayon::prelude::*;
            return rows.par_iter_mut().enumerate().with_max_len(1).try_for_each(push);
        }
        rows.iter_mut().enumerate().try_for_each(push)
    }

    /// The settings by which a cache can be told from others, each with its name.
    fn settings(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        [("kernel", "dense".to_owned())].into_iter().chain(self.options.of_cache())
    }

    /// A kernel with the same tokens, that goes its own way from here.
    fn forked(&self) -> Self {
        Self {
            options: self.options.clone(),
            rows: self.rows.share(),
            counts: self.counts.clone(),
            log_sums: Vec::new(),
            step: self.step,
        }
    }

    /// Back to `len` tokens in every head, some of which may not have got so far.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`] where a fork has them too; what has been appended since is this kernel's own, and cut without an error.
    fn roll_back(&mut self, len: usize) -> Result<(), CoreError> {
        if self.rows.iter().all(|rows| rows.len() <= len) {
            return Ok(());
        }
        let rows = self.rows.make_mut(&self.options.budget)?;
        rows.iter_mut().try_for_each(|rows| rows.truncate(len.min(rows.len())))
    }

    /// Drops what neither the latest query nor a later one attends to.
    fn trim(&mut self) {
        let first = self.options.first_seen(self.len());
        self.rows.alone().into_iter().flatten().for_each(|rows| rows.drop_before(first));
    }

    /// The first token that is held.
    fn first(&self) -> usize {
        self.rows.last().map_or(0, PagedRows::first)
    }

    /// Converts all keys and values, or none. Memory that this needs for a moment is not charged.
    fn narrow_to(&mut self, store: KvStore) -> Result<(), CoreError> {
        let shape = self.options.shape;
        let bytes = |store: KvStore| {
            let format = RowFormat::of(store);
            format.row_bytes(shape.head_dim()) + format.row_bytes(shape.value_dim())
        };
        // Of one or two channels, 8-bit codes and their scale take as much as f16 or more.
        if bytes(store) >= bytes(self.options.store) {
            return Ok(());
        }
        let unlimited = MemoryBudget::unlimited();
        let mut narrow = Vec::with_capacity(self.rows.len());
        for rows in self.rows.iter() {
            narrow.push(rows.converted(RowFormat::of(store), &unlimited)?);
        }
        self.rows.replace(narrow, &self.options.budget)?;
        self.options.store = store;
        Ok(())
    }
}

impl AttentionKernel for DenseAttention {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let cached = self.len();
        let fits = RowFormat::of(self.options.store).takes();
        let first = self.options.first_query([fits; 2], self.first()..cached, &q, &k, &v, &out)?;
        self.log_sums.resize(self.options.log_sums(&q), 0.0);
        let result = self.append(&k, &v).map_err(AttentionError::from).and_then(|()| {
            let (keys, values) = self.rows.split_at(self.options.shape.kv_heads());
            let segments = |head: usize| exact_segment(&keys[head], &values[head]);
            let split = all(&self.options, self.len());
            let output = Output { rows: out, counts: &mut self.counts, log_sums: &mut self.log_sums };
            attend(&self.options, &q, first, &split, &segments, output)
        });
        if result.is_err() {
            self.log_sums.clear();
            self.roll_back(cached)?;
        } else if self.step.is_none() {
            self.trim();
        }
        result
    }

    /// Every query sees all keys before it, whatever belongs to one prompt.
    fn begin_prompt(&mut self, _: usize) {}

    fn len(&self) -> usize {
        self.rows.last().map_or(0, PagedRows::len)
    }

    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        self.options.check_cut(len, self.first()..self.len())
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.check_truncate(len)?;
        self.roll_back(len)?;
        self.step = self.step.filter(|step| *step <= len);
        Ok(())
    }

    fn begin_step(&mut self) {
        self.step = Some(self.len());
    }

    fn commit_step(&mut self) {
        if self.step.take().is_some() {
            self.trim();
        }
    }

    fn undo_step(&mut self, len: usize) -> Result<(), AttentionError> {
        self.truncate(len)?;
        self.log_sums.clear();
        self.step = None;
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        let (keys, values) = self.rows.split_at(self.options.shape.kv_heads());
        for (keys, values) in keys.iter().zip(values) {
            sum += Footprint {
                keys: keys.held_bytes(),
                values: values.held_bytes(),
                window: 0,
                bookkeeping: keys.bookkeeping_bytes() + values.bookkeeping_bytes(),
            };
        }
        sum
    }

    fn stats(&self) -> SparsityStats {
        SparsityStats::new(self.counts.clone())
    }

    fn log_sum_exp(&self) -> Option<&[f32]> {
        (!self.log_sums.is_empty()).then_some(&self.log_sums)
    }

    fn growth(&self, tokens: usize) -> Option<usize> {
        Some(self.rows.growth(|rows| rows.growth(tokens)))
    }

    fn budget(&self) -> Option<&MemoryBudget> {
        Some(&self.options.budget)
    }

    fn fork(&self) -> Option<Box<dyn AttentionKernel>> {
        Some(Box::new(self.forked()))
    }

    fn detach(&mut self) -> Result<(), AttentionError> {
        self.rows.make_mut(&self.options.budget)?;
        Ok(())
    }

    fn save(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        saved::begin(self.settings(), self.options.store, self.step.is_some(), writer)?;
        self.counts.iter().for_each(|counts| counts.save(writer));
        self.rows.iter().for_each(|rows| rows.save(writer));
        Ok(())
    }

    fn load(&mut self, reader: &mut SnapshotReader) -> Result<(), SnapshotError> {
        let (mut loaded, in_use) = (self.forked(), !self.is_empty() || self.step.is_some());
        saved::check(&mut loaded, self.settings(), in_use, |kernel| kernel.options.store, reader)?;
        for counts in &mut loaded.counts {
            *counts = HeadSparsity::load(reader)?;
        }
        loaded.rows = loaded.rows.load(reader)?;
        let (len, first) = (loaded.len(), loaded.first());
        // As after a cut: by the query that comes next.
        let can_go_on = self.options.check_cut(len, first..len).is_ok();
        if !can_go_on || !loaded.rows.iter().all(|rows| rows.len() == len && rows.first() == first) {
            let expected = "heads that hold the same tokens, and all that is attended to";
            return Err(saved::invalid("tokens", expected, len));
        }
        *self = loaded;
        Ok(())
    }

    /// From f32 to f16, and the next time from 16 bits to 8.
    fn narrow(&mut self) -> Result<usize, AttentionError> {
        let held = self.footprint().total();
        match self.options.store {
            KvStore::F32 => self.narrow_to(KvStore::F16)?,
            KvStore::F16 | KvStore::Bf16 => self.narrow_to(KvStore::Int8)?,
            _ => {}
        }
        Ok(held.saturating_sub(self.footprint().total()))
    }
}

/// Exact attention for an engine that keeps its own cache: nothing is stored and nothing copied as a whole.
///
/// `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[cached, kv_heads, head_dim]` with `cached >= tokens`: the
/// queries belong to the last tokens of the cache.
///
/// # Errors
/// [`AttentionError`] for shapes that do not fit and numbers that are not finite.
///
/// ```
/// use deltallm_attn::{AttentionOptions, AttentionShape, HeadsView, HeadsViewMut, attend_dense};
///
/// let (shape, options) = (AttentionShape::new(4, 2, 8)?, AttentionOptions::default());
/// let (cache, q) = (vec![0.5; 100 * 2 * 8], vec![0.1; 4 * 8]); // 100 cached tokens, the last of them asks
/// let mut out = vec![0.0; 4 * 8];
/// let cached = HeadsView::new(&cache, [100, 2, 8])?;
/// let q = HeadsView::new(&q, [1, 4, 8])?;
/// attend_dense(shape, &options, q, cached, cached, HeadsViewMut::new(&mut out, [1, 4, 8])?)?;
/// assert!(out.iter().all(|x| (x - 0.5_f32).abs() < 1e-6));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
pub fn attend_dense(
    shape: AttentionShape,
    options: &AttentionOptions,
    q: HeadsView,
    k: HeadsView,
    v: HeadsView,
    out: HeadsViewMut,
) -> Result<(), AttentionError> {
    let options = Settings::new(shape, options.clone())?;
    let first = shape.check_call(&q, &k, &v, &out)?;
    let rows = |view| (0..shape.kv_heads()).map(|head| HeadRows { view, head }).collect::<Vec<_>>();
    let (keys, values) = (rows(k), rows(v));
    let mut counts = vec![HeadSparsity::default(); shape.kv_heads()];
    let split = all(&options, k.tokens());
    let output = Output { rows: out, counts: &mut counts, log_sums: &mut [] };
    attend(&options, &q, first, &split, &|head| exact_segment(&keys[head], &values[head]), output)
}

/// All keys are one part; window and sinks play no role.
fn all(options: &Settings, tokens: usize) -> Split {
    Split { mask: options.mask, tokens, window: WindowState::NONE, exact_from: 0, sinks: 0 }
}

fn exact_segment<'a>(keys: &'a dyn TokenRows, values: &'a dyn TokenRows) -> Segments<'a> {
    Segments::One([Segment { keys: SegmentKeys::Rows(keys), values, part: Part::All, skip_margin: None }])
}
