//! Delta attention with an exact window: the kernel to use.
//!
//! In reading order: `config`, the settings; here, the kernel; `memory` (what is coded and what stays exact, and narrower stores); `head`, the cache
//! of one kv head; `delta`, the same kernel without a window.

mod config;
pub(crate) mod delta;
mod head;
mod memory;

use std::ops::Range;

use deltallm_core::{
    CachePlan, CoreError, Footprint, HeadSparsity, KeyPlan, KvStore, MemoryBudget, SnapshotError,
    SnapshotReader, SnapshotWriter, SparsityStats,
    internal::{PagedRows, RowFormat, TokenStore, most_key_bytes, whole_keys},
};

pub use config::{HybridConfig, PaperRule};
use head::{CodedTokens, ExactRows, FarKeys, HybridHead};

use crate::{
    AttentionError, AttentionKernel, AttentionShape, ExactWindow, HeadsView, HeadsViewMut, Mask, SkipMargin,
    attend::attend,
    heads::Heads,
    options::Settings,
    output::Output,
    saved,
    segment::{Segment, SegmentKeys, Segments},
    window::{Part, Split, WindowState},
};

/// Hybrid attention (`docs/method.md`, equations 1 to 6): exact scores inside a local window and for the first keys,
/// delta-coded keys for the rest of the history, values untouched but skipped where they cannot matter.
///
/// The cache holds every key delta-coded, exact copies of the window and the sinks, and the values. [`KvStore::Int8`] and
/// [`KvStore::Compact`] hold the window in f16 alone, values too, and code what leaves it in fewer bits, values too; the former
/// without deltas and thresholds. A [short](HybridConfig::codes_from) cache of theirs is in f16 throughout, so it is never larger than one in f16.
/// Exact copies are gone when they have left the window by more tokens than [`exact_rewind`](crate::AttentionOptions::exact_rewind) says: after
/// [`truncate`](AttentionKernel::truncate) to a point further back, the keys just before that point are scored through their deltas (within
/// the bound) until the window has filled up again.
///
/// ```
/// use deltallm_attn::{AttentionKernel, AttentionShape, HeadsView, HeadsViewMut, HybridAttention, HybridConfig};
///
/// let mut attention = HybridAttention::new(AttentionShape::new(4, 2, 8)?, HybridConfig::default())?;
/// let (q, k, v, mut out) = ([1.0; 3200], [1.0; 1600], [3.0; 1600], [0.0; 3200]); // 100 tokens
/// let [q, k, v] = [(&q[..], 4), (&k, 2), (&v, 2)].map(|(data, heads)| HeadsView::new(data, [100, heads, 8]));
/// attention.forward_heads(q?, k?, v?, HeadsViewMut::new(&mut out, [100, 4, 8])?)?;
/// assert!(out.iter().all(|x| (x - 3.0_f32).abs() < 1e-5));
/// assert_eq!(attention.stats().total().zero_fraction(), 0.99); // the keys never move
/// assert!(attention.footprint().total() > 0);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct HybridAttention {
    options: Settings,
    /// `None` is delta everywhere.
    window: Option<ExactWindow>,
    exact_prompt: usize,
    sinks: usize,
    /// `None` follows from the window.
    codes_from: Option<usize>,
    /// Whether no token is ever coded: a mask that reaches back hardly further than a cache without codes.
    uncoded: bool,
    skip_margin: Option<SkipMargin>,
    heads: Heads<HybridHead>,
    counts: Vec<HeadSparsity>,
    /// Of the latest call, if anyone asks.
    log_sums: Vec<f32>,
    state: WindowState,
    /// Where an announced prompt ends.
    prompt_end: usize,
    /// Where a step has begun that may be taken back.
    step: Option<RollbackPoint>,
}

/// What a cache returns to when calls are taken back. Exact copies are let go after that, so what was held is still there.
#[derive(Debug, Clone, Copy)]
struct RollbackPoint {
    len: usize,
    coded: usize,
    state: WindowState,
    prompt_end: usize,
}

impl HybridAttention {
    /// An empty cache.
    ///
    /// # Errors
    /// [`AttentionError::Setting`] for a window, margin, scale or soft cap out of range; [`AttentionError::Core`] when
    /// the thresholds are not for this layer.
    pub fn new(shape: AttentionShape, config: HybridConfig) -> Result<Self, AttentionError> {
        config.exact_window.check()?;
        config.skip_margin.map_or(Ok(()), SkipMargin::check)?;
        let window = Some(config.exact_window);
        Self::with_window(shape, config, window)
    }

    /// `window` is the configuration's, or none for delta everywhere.
    pub(crate) fn with_window(
        shape: AttentionShape,
        config: HybridConfig,
        window: Option<ExactWindow>,
    ) -> Result<Self, AttentionError> {
        let options = Settings::new(shape, config.options)?;
        let (kv_heads, head_dim, store) = (shape.kv_heads(), shape.head_dim(), options.store);
        if window.is_none() && !store.is_delta() {
            let expected = "f32, f16, bf16 or compact (int8 has no deltas: use dense or hybrid attention)";
            return Err(AttentionError::Store { kernel: "delta attention", expected, got: store });
        }
        let thresholds = config.thresholds.for_layer(config.layer, kv_heads, head_dim)?;
        let exact_sinks = window.map(|_| config.exact_sinks);
        // A token is coded when it leaves the window.
        let waits = store.is_quantised() && window.is_some();
        let codes_from = if waits { config.codes_from } else { Some(0) };
        let mut heads = Vec::with_capacity(kv_heads);
        for thresholds in thresholds {
            let whole = codes_from.is_none().then(|| whole_keys_under(options.mask));
            let head =
                HybridHead::new(store, thresholds, shape.value_dim(), exact_sinks, whole, &options.budget)?;
            heads.push(head.that_rewinds(options.exact_rewind > 0));
        }
        let mut kernel = Self {
            window,
            exact_prompt: config.exact_prompt,
            sinks: exact_sinks.unwrap_or(0),
            codes_from,
            uncoded: false,
            skip_margin: config.skip_margin,
            heads: Heads::new(heads),
            counts: vec![HeadSparsity::default(); kv_heads],
            log_sums: Vec::new(),
            state: WindowState::NONE,
            prompt_end: 0,
            step: None,
            options,
        };
        let first_codes = kernel.window_for(0).first_codes();
        kernel.uncoded = waits && kernel.options.mask.most_keys().is_some_and(|most| most <= first_codes);
        kernel.state = kernel.window_for(0);
        Ok(kernel)
    }

    /// The window for a prompt that ends at token `prompt_end`.
    fn window_for(&self, prompt_end: usize) -> WindowState {
        let Some(window) = self.window else { return WindowState::NONE };
        let state = WindowState::new(window, prompt_end);
        self.codes_from_of(state)
    }

    /// The same window with the length from which on there are codes.
    fn codes_from_of(&self, state: WindowState) -> WindowState {
        if self.window.is_none() {
            return state;
        }
        if self.uncoded {
            return state.codes_from(usize::MAX);
        }
        let codes_from = self.codes_from.unwrap_or_else(|| {
            let keys = KeyPlan::Delta {
                zero_fraction: 0.0,
                wide: 0.0,
                escapes: 0.0,
                window: state.keys().saturating_add(self.options.exact_rewind),
                sinks: self.sinks,
            };
            let shape = self.options.shape;
            let plan = CachePlan::new(shape.kv_heads(), shape.head_dim(), self.options.store, keys);
            plan.value_dim(shape.value_dim()).attended(self.options.mask.most_keys()).codes_from()
        });
        state.codes_from(codes_from)
    }

    /// The settings by which a cache can be told from others, each with its name.
    fn settings(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let window = self.window.map_or_else(|| "none".to_owned(), |window| window.to_string());
        let own = [
            ("kernel", "hybrid".to_owned()),
            ("exact window", window),
            ("exact sinks", self.sinks.to_string()),
            ("exact prompt", self.exact_prompt.to_string()),
            ("skip margin", format!("{:?}", self.skip_margin)),
            ("first length with codes", format!("{:?}", self.codes_from)),
        ];
        own.into_iter().chain(self.options.of_cache())
    }

    /// Checks that the heads of a cache that has been loaded fit each other, and hold what will be attended to.
    fn check_heads(&self) -> Result<(), SnapshotError> {
        // As after a cut: by the query that comes next.
        let seen = self.options.mask.first_key(self.len());
        let can_go_on = self.options.check_cut(self.len(), self.held()).is_ok();
        let of = |head: &HybridHead| [head.len(), head.coded.len(), head.tail.keys.first(), head.first()];
        let alike = self.heads.windows(2).all(|pair| of(&pair[0]) == of(&pair[1]));
        let coded = match self.uncoded {
            true => self.coded() == 0,
            false => self.heads.iter().all(|head| head.tail.keys.first() <= head.coded.len()),
        };
        if alike && coded && can_go_on && self.heads.iter().all(|head| head.holds_from(seen)) {
            return Ok(());
        }
        Err(saved::invalid(
            "tokens",
            "heads that hold the same tokens, and all that is attended to",
            self.len(),
        ))
    }

    /// A kernel with the same tokens, that goes its own way from here.
    pub(crate) fn forked(&self) -> Self {
        let (options, heads, counts) = (self.options.clone(), self.heads.share(), self.counts.clone());
        Self { options, heads, counts, log_sums: Vec::new(), ..*self }
    }

    /// The tokens that are held.
    fn held(&self) -> Range<usize> {
        self.heads.last().map_or(0, HybridHead::first)..self.len()
    }

    /// Checks a call's arguments, once for all stores; returns the position of its first query.
    fn check_call(
        &self,
        q: &HeadsView,
        k: &HeadsView,
        v: &HeadsView,
        out: &HeadsViewMut,
    ) -> Result<usize, AttentionError> {
        let fits = self.heads.first().map_or_else(Default::default, HybridHead::takes);
        self.options.first_query(fits, self.held(), q, k, v, out)
    }

    /// Appends tokens, and codes all those that the queries from position `first` on see through codes.
    fn append(&mut self, k: &HeadsView, v: &HeadsView, first: usize) -> Result<(), CoreError> {
        let far = self.far_until(self.state, first, self.len() + k.tokens());
        let push = |(kv_head, head): (usize, &mut HybridHead)| {
            for token in 0..k.tokens() {
                head.push(k.row(token, kv_head), v.row(token, kv_head))?;
            }
            head.code_until(far)
        };
        let heads = self.heads.make_mut(&self.options.budget)?;
        #[cfg(feature = "rayon")]
        if self.options.parallel
            && k.tokens() >= deltallm_simd::tuning::LEAST_CODED_TOKENS
            && rayon::current_num_threads() > 1
        {
            use rayon::prelude::*;
            return heads.par_iter_mut().enumerate().try_for_each(push);
        }
        heads.iter_mut().enumerate().try_for_each(push)
    }

    /// Back to `len` tokens in every head, some of which may not have got so far, and to at most `coded` coded ones.
    ///
    /// # Errors
    /// [`CoreError::BudgetExhausted`] where a fork has them too; what has been appended since is this kernel's own, and cut without an error.
    fn roll_back(&mut self, len: usize, coded: usize) -> Result<(), CoreError> {
        let cuts = self.heads.iter().any(|head| head.len() > len || head.coded.len() > coded);
        if !cuts && self.heads.alone().is_none() {
            // A fork that has written nothing.
            return Ok(());
        }
        let heads = self.heads.make_mut(&self.options.budget)?;
        heads.iter_mut().for_each(|head| head.roll_back(len, coded));
        // With the memory that all of them have given back.
        heads.iter_mut().for_each(HybridHead::restore_deltas);
        Ok(())
    }

    /// Attends the last tokens of the cache, of which `q` are the queries.
    fn attend(&mut self, q: &HeadsView, first: usize, out: HeadsViewMut) -> Result<(), AttentionError> {
        let exact_from = self.heads.first().map_or(0, |head| head.tail.keys.first());
        let (mask, tokens) = (self.options.mask, self.len());
        let split = Split { mask, tokens, window: self.state, exact_from, sinks: self.sinks };
        let segments = |head: usize| {
            let HybridHead { coded: CodedTokens { keys, values, sinks }, tail, .. } = &self.heads[head];
            let keys = match keys {
                FarKeys::Delta(matrix) => SegmentKeys::Deltas(matrix),
                FarKeys::Rows(rows) => SegmentKeys::Rows(rows),
            };
            let far = Segment { keys, values, part: Part::Far, skip_margin: None };
            if self.window.is_none() {
                return Segments::One([far]);
            }
            // The exact segments come first: they fix the scores that a far value has to come near to.
            Segments::Three([
                exact_segment(sinks, values, Part::Sinks),
                exact_segment(tail, values, Part::Window),
                Segment { skip_margin: self.skip_margin, ..far },
            ])
        };
        self.log_sums.resize(self.options.log_sums(q), 0.0);
        let output = Output { rows: out, counts: &mut self.counts, log_sums: &mut self.log_sums };
        attend(&self.options, q, first, &split, &segments, output)
    }

    /// Where the cache stands.
    fn point(&self) -> RollbackPoint {
        let Self { state, prompt_end, .. } = *self;
        RollbackPoint { len: self.len(), coded: self.coded(), state, prompt_end }
    }

    /// Takes back whatever has come since, from heads that may have got to different lengths.
    fn return_to(
        &mut self,
        RollbackPoint { len, coded, state, prompt_end }: RollbackPoint,
    ) -> Result<(), CoreError> {
        self.roll_back(len, coded)?;
        (self.state, self.prompt_end) = (state, prompt_end);
        Ok(())
    }

    /// The window for a call that brings the tokens `first..end`.
    fn window_of(&self, first: usize, end: usize) -> WindowState {
        let prompt_end = if first < self.prompt_end { self.prompt_end } else { end };
        if first < self.prompt_end || end - first > 1 {
            let exact = if prompt_end <= self.exact_prompt { prompt_end } else { 0 };
            self.window_for(prompt_end).exact_until(exact)
        } else {
            self.state
        }
    }
}

/// How a head holds its keys where their deltas would take more.
fn whole_keys_under(mask: Mask) -> RowFormat {
    whole_keys(mask.most_keys().is_some())
}

/// Window or sinks; `values` are those of all tokens.
fn exact_segment<'a>(rows: &'a ExactRows, values: &'a PagedRows, part: Part) -> Segment<'a> {
    let values = rows.values.as_ref().unwrap_or(values);
    Segment { keys: SegmentKeys::Rows(&rows.keys), values, part, skip_margin: None }
}

impl AttentionKernel for HybridAttention {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let before = self.point();
        let first = self.check_call(&q, &k, &v, &out)?;
        self.state = self.window_of(before.len, before.len + k.tokens());
        let appended = self.append(&k, &v, first).map_err(AttentionError::from);
        let result = appended.and_then(|()| self.attend(&q, first, out));
        if result.is_err() {
            self.log_sums.clear();
            self.return_to(before)?;
        } else if self.step.is_none() {
            self.trim();
        }
        result
    }

    fn begin_prompt(&mut self, tokens: usize) {
        self.prompt_end = self.len().saturating_add(tokens);
    }

    fn len(&self) -> usize {
        self.heads.last().map_or(0, HybridHead::len)
    }

    fn check_truncate(&self, len: usize) -> Result<(), AttentionError> {
        self.options.check_cut(len, self.held())
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.check_truncate(len)?;
        let state = self.state.after_cut(len);
        self.roll_back(len, self.coded_after_cut(state, len))?;
        self.state = state;
        self.prompt_end = self.prompt_end.min(len);
        self.step = self.step.filter(|step| step.len <= len);
        Ok(())
    }

    fn begin_step(&mut self) {
        self.step = Some(self.point());
    }

    fn commit_step(&mut self) {
        if self.step.take().is_some() {
            self.trim();
        }
    }

    fn undo_step(&mut self, len: usize) -> Result<(), AttentionError> {
        match self.step {
            Some(step) if step.len == len => self.return_to(step)?,
            _ => self.truncate(len)?,
        }
        self.log_sums.clear();
        self.step = None;
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        self.heads.iter().for_each(|head| sum += head.footprint());
        sum
    }

    fn stats(&self) -> SparsityStats {
        let store = self.options.store;
        let heads = self.heads.iter().zip(&self.counts).map(|(head, counts)| match head.changes(store) {
            Some([nonzeros, elements]) => {
                HeadSparsity { elements: elements as u64, nonzeros: nonzeros as u64, ..*counts }
            }
            None => *counts,
        });
        SparsityStats::new(heads.collect())
    }

    fn log_sum_exp(&self) -> Option<&[f32]> {
        (!self.log_sums.is_empty()).then_some(&self.log_sums)
    }

    fn growth(&self, tokens: usize) -> Option<usize> {
        let end = self.len().saturating_add(tokens);
        // How a window in blocks will lie is not known before the prompt has been announced.
        let coded = match self.window {
            Some(ExactWindow::Block { .. }) => end,
            _ => self.far_until(self.window_of(self.len(), end), self.len(), end),
        };
        let window = self.window_of(self.len(), end);
        let needed = self.needed_from(window, end);
        let begins = needed > 0 && self.begins_later();
        // Where codes begin, keys may become whole at once, and their deltas be kept.
        let deltas = if begins && self.options.exact_rewind > 0 {
            most_key_bytes(whole_keys_under(self.options.mask), self.options.shape.head_dim(), needed)
        } else {
            0
        };
        let kept = self.kept_from(window, end);
        Some(self.heads.growth(|head| {
            // What codes and small pages replace gives its memory back, unless a fork holds on to it.
            let shared = head.tail.is_shared();
            let coded = if begins && shared { coded.max(needed) } else { coded };
            let moves = shared && (begins || kept.min(coded) > 0);
            let small = if moves { head.growth_of_small_pages(kept..end) } else { 0 };
            head.growth(tokens, coded).saturating_add(small).saturating_add(deltas)
        }))
    }

    fn budget(&self) -> Option<&MemoryBudget> {
        Some(&self.options.budget)
    }

    fn fork(&self) -> Option<Box<dyn AttentionKernel>> {
        Some(Box::new(self.forked()))
    }

    fn detach(&mut self) -> Result<(), AttentionError> {
        self.heads.make_mut(&self.options.budget)?;
        Ok(())
    }

    fn save(&self, writer: &mut SnapshotWriter) -> Result<(), SnapshotError> {
        saved::begin(self.settings(), self.options.store, self.step.is_some(), writer)?;
        self.state.save(writer);
        writer.count(self.prompt_end);
        self.counts.iter().for_each(|counts| counts.save(writer));
        self.heads.iter().for_each(|head| head.save(writer));
        Ok(())
    }

    fn load(&mut self, reader: &mut SnapshotReader) -> Result<(), SnapshotError> {
        let (mut loaded, in_use) = (self.forked(), !self.is_empty() || self.step.is_some());
        saved::check(&mut loaded, self.settings(), in_use, |kernel| kernel.options.store, reader)?;
        let state = WindowState::load(self.window, self.exact_prompt, reader)?;
        loaded.state = loaded.codes_from_of(state);
        loaded.prompt_end = reader.count("tokens", usize::MAX)?;
        for counts in &mut loaded.counts {
            *counts = HeadSparsity::load(reader)?;
        }
        loaded.heads = loaded.heads.load(reader)?;
        loaded.check_heads()?;
        *self = loaded;
        Ok(())
    }

    /// From f32 to f16, and the next time from 16 bits to [`KvStore::Compact`].
    fn narrow(&mut self) -> Result<usize, AttentionError> {
        let held = self.footprint().total();
        match self.options.store {
            KvStore::F32 => self.narrow_to(KvStore::F16)?,
            KvStore::F16 | KvStore::Bf16 => self.narrow_to(KvStore::Compact)?,
            _ => {}
        }
        Ok(held.saturating_sub(self.footprint().total()))
    }
}

/// Hybrid attention for an engine that keeps its own cache: codes `k` afresh, attends, and forgets it again.
///
/// `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[cached, kv_heads, head_dim]` with `cached >= tokens`: the
/// queries belong to the last tokens of the cache, which counts as one prompt. Returns the sparsity of this call.
///
/// # Errors
/// [`AttentionError`] for shapes that do not fit, numbers that are not finite, and settings out of range.
pub fn attend_hybrid(
    shape: AttentionShape,
    config: &HybridConfig,
    q: HeadsView,
    k: HeadsView,
    v: HeadsView,
    out: HeadsViewMut,
) -> Result<SparsityStats, AttentionError> {
    let mut attention = HybridAttention::new(shape, config.clone())?;
    let first = attention.check_call(&q, &k, &v, &out)?;
    attention.begin_prompt(k.tokens());
    attention.state = attention.window_of(0, k.tokens());
    attention.append(&k, &v, first)?;
    attention.attend(&q, first, out)?;
    Ok(attention.stats())
}
