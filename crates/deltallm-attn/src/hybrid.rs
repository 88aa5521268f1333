//! Delta attention with an exact window: the product.

use deltallm_core::{
    AtLimit, BLOCK_TOKENS, CachePlan, Charge, CoreError, DeltaMatrix, DeltaStream, ElementType, Footprint,
    HeadSparsity, PagedRows, SparsityStats, TargetSparsity, ThresholdPolicy,
};

use crate::{
    AttentionError, AttentionKernel, AttentionOptions, HeadsView, HeadsViewMut, SkipMargin, Window,
    dense::{check_same_tokens, first_position},
    forward::{attend, check_inputs},
    query_tile,
    tile::{Keys, Phase},
    window::{Part, Split, WindowState},
};

/// The method of [`HybridAttention`].
#[derive(Debug, Clone)]
pub struct HybridConfig {
    /// Thresholds of the delta coding.
    pub thresholds: ThresholdPolicy,
    /// Which layer of the policy this kernel is.
    pub layer: usize,
    /// Keys scored exactly.
    pub window: Window,
    /// First keys of the sequence, always scored exactly.
    pub sinks: usize,
    /// Skip a far value when its key scores by this margin or more below the best exact score, for every query of the
    /// tile (`docs/method.md`, equation 5); `None` keeps all.
    pub skip_margin: Option<SkipMargin>,
}

impl HybridConfig {
    /// A sliding window of 64 keys, 4 sinks, no skipping.
    pub fn new(thresholds: ThresholdPolicy) -> Self {
        Self { thresholds, layer: 0, window: Window::Sliding(64), sinks: 4, skip_margin: None }
    }
}

impl Default for HybridConfig {
    /// What to do with a model of which nothing is known: a zero fraction of 0.45 ([`TargetSparsity::default`]), a sliding
    /// window of 64 keys, 4 sinks, no skipping. A calibrated profile does better at the same cost.
    fn default() -> Self {
        Self::new(ThresholdPolicy::TargetSparsity(TargetSparsity::default()))
    }
}

/// The rule of the paper, for comparison: one threshold for all channels and a block-diagonal window, without sinks or
/// skipping.
///
/// ```
/// use deltallm_attn::{HybridConfig, PaperRule, Window};
///
/// let config = HybridConfig::from(PaperRule { theta: 1.0, ..PaperRule::default() });
/// assert_eq!((config.window, config.sinks), (Window::Block { scale: 0.05 }, 0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperRule {
    /// The threshold, in the units of the keys; the paper's example is 0.6.
    pub theta: f32,
    /// Length of a block as a share of the prompt; 0.05 in the authors' code.
    pub scale: f32,
}

impl Default for PaperRule {
    fn default() -> Self {
        Self { theta: 0.6, scale: 0.05 }
    }
}

impl From<PaperRule> for HybridConfig {
    fn from(PaperRule { theta, scale }: PaperRule) -> Self {
        Self { window: Window::Block { scale }, sinks: 0, ..Self::new(ThresholdPolicy::Uniform(theta)) }
    }
}

/// Hybrid attention (`docs/method.md`, equations 1 to 6): exact scores inside a local window and for the first keys,
/// delta-coded keys for the rest of the history, values untouched but skipped where they cannot matter.
///
/// The cache holds every key delta-coded, exact copies of the window and the sinks, and the values. Exact copies that
/// have left the window are gone: after [`truncate`](AttentionKernel::truncate) to a point further back, the keys just
/// before that point are scored through their deltas (within the bound) until the window has filled up again.
///
/// ```
/// use deltallm_attn::{
///     AttentionKernel, AttentionOptions, AttentionShape, HybridAttention, HybridConfig, ThresholdPolicy,
/// };
/// use ndarray::Array3;
///
/// let options = AttentionOptions::new(AttentionShape::new(4, 2, 8)?)?;
/// let mut attention = HybridAttention::new(&options, &HybridConfig::new(ThresholdPolicy::Uniform(0.5)))?;
/// let (q, k) = (Array3::ones((100, 4, 8)), Array3::ones((100, 2, 8)));
/// let v = Array3::from_elem((100, 2, 8), 3.0);
/// let mut out = Array3::zeros((100, 4, 8));
/// attention.forward(q.view(), k.view(), v.view(), out.view_mut())?;
/// assert!(out.iter().all(|x| (x - 3.0_f32).abs() < 1e-5));
/// assert_eq!(attention.stats().total().zero_fraction(), 0.99); // the keys never move
/// assert!(attention.footprint().total() > 0);
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct HybridAttention {
    options: AttentionOptions,
    /// `None` is delta everywhere.
    window: Option<Window>,
    sinks: usize,
    skip_margin: Option<SkipMargin>,
    /// What every score must keep to, where that is the policy.
    error_bound: Option<f32>,
    heads: Vec<HybridHead>,
    charge: Charge,
    counts: Vec<HeadSparsity>,
    state: WindowState,
    /// Where an announced prompt ends.
    prompt_end: usize,
    /// How often the thresholds have been raised.
    raises: u32,
}

#[derive(Debug)]
struct HybridHead {
    keys: DeltaMatrix,
    values: PagedRows,
    /// Exact copies of the latest keys.
    tail: PagedRows,
    /// Exact copies of the first keys.
    sinks: PagedRows,
}

impl HybridAttention {
    /// An empty cache.
    ///
    /// # Errors
    /// [`AttentionError::Setting`] for a window, margin, scale or soft cap out of range; [`AttentionError::Core`] when
    /// the thresholds are not for this layer.
    pub fn new(options: &AttentionOptions, config: &HybridConfig) -> Result<Self, AttentionError> {
        config.window.check()?;
        config.skip_margin.map_or(Ok(()), SkipMargin::check)?;
        Self::with_window(options, config, Some(config.window))
    }

    /// `window` is the configuration's, or none for delta everywhere.
    pub(crate) fn with_window(
        options: &AttentionOptions,
        config: &HybridConfig,
        window: Option<Window>,
    ) -> Result<Self, AttentionError> {
        options.check()?;
        let (kv_heads, head_dim, element) =
            (options.shape.kv_heads(), options.shape.head_dim(), options.store.exact());
        if options.store.is_quantised() {
            let (kernel, expected) = ("hybrid attention", "f32, f16 or bf16");
            return Err(AttentionError::Store { kernel, expected, got: options.store });
        }
        let thresholds = config.thresholds.for_layer(config.layer, kv_heads, head_dim)?;
        let heads = thresholds
            .into_iter()
            .map(|thresholds| {
                Ok(HybridHead {
                    keys: DeltaMatrix::new(thresholds, element)?,
                    values: PagedRows::new(head_dim, element, BLOCK_TOKENS),
                    tail: PagedRows::new(head_dim, element, CachePlan::WINDOW_PAGE_TOKENS),
                    sinks: PagedRows::new(head_dim, element, CachePlan::sink_page_tokens(config.sinks)),
                })
            })
            .collect::<Result<_, CoreError>>()?;
        Ok(Self {
            window,
            sinks: if window.is_some() { config.sinks } else { 0 },
            skip_margin: config.skip_margin,
            error_bound: match &config.thresholds {
                ThresholdPolicy::ErrorBound(bound) => Some(bound.epsilon()),
                _ => None,
            },
            heads,
            charge: options.budget.charge(),
            counts: vec![HeadSparsity::default(); kv_heads],
            state: window.map_or(WindowState::NONE, |window| WindowState::new(window, 0)),
            prompt_end: 0,
            raises: 0,
            options: options.clone(),
        })
    }

    /// What [`AtLimit::RaiseThresholds`] multiplies the thresholds by, each time. More than 2, or the keys that are
    /// coded already would not shrink ([`DeltaMatrix::coarsen`]).
    pub const RAISE: f32 = 2.5;

    /// How often thresholds are raised at most, to about six times what they were: hardly anything is transmitted then.
    pub const MOST_RAISES: u32 = 2;

    /// Queries that decide together which values to skip; their positions start at multiples of this number.
    pub fn query_tile(&self) -> usize {
        query_tile(self.options.shape.group())
    }

    /// Checks that the bound of every query's scores (`docs/method.md`, equation 3) is what the policy promises.
    fn check_bound(&self, q: &HeadsView) -> Result<(), AttentionError> {
        let Some(epsilon) = self.error_bound else { return Ok(()) };
        let thresholds: Vec<Vec<f32>> = self.heads.iter().map(|head| head.keys.thresholds()).collect();
        for token in 0..q.tokens() {
            for head in 0..self.options.shape.heads() {
                let thresholds = &thresholds[head / self.options.shape.group()];
                let error = |(q, theta): (&f32, &f32)| q.abs() * theta;
                let sum: f32 = q.row(token, head).iter().zip(thresholds).map(error).sum();
                let got = sum * self.options.scale;
                // A little more is the rounding of this very sum.
                if got > epsilon * 1.0001 {
                    return Err(AttentionError::ScoreBound { token, head, epsilon, got });
                }
            }
        }
        Ok(())
    }

    fn append(&mut self, k: &HeadsView, v: &HeadsView) -> Result<(), CoreError> {
        let (windowed, charge) = (self.window.is_some(), &mut self.charge);
        for (kv_head, head) in self.heads.iter_mut().enumerate() {
            for token in 0..k.tokens() {
                let key = k.row(token, kv_head);
                head.keys.push(key, charge)?;
                if windowed {
                    head.tail.push(key, charge)?;
                    if head.sinks.len() < self.sinks {
                        head.sinks.push(key, charge)?;
                    }
                }
                head.values.push(v.row(token, kv_head), charge)?;
            }
        }
        Ok(())
    }

    /// Back to `len` tokens in every head, some of which may not have got so far.
    fn roll_back(&mut self, len: usize) {
        let charge = &mut self.charge;
        for head in &mut self.heads {
            // None of these can fail: none is asked for more than it holds.
            let _ = head.keys.truncate(len.min(head.keys.len()), charge);
            let _ = head.tail.truncate(len.min(head.tail.len()), charge);
            let _ = head.values.truncate(len.min(head.values.len()), charge);
            let _ = head.sinks.truncate(len.min(head.sinks.len()), charge);
        }
    }

    /// Attends the last tokens of the cache, of which `q` are the queries.
    fn attend(
        &self,
        q: &HeadsView,
        first: usize,
        out: HeadsViewMut,
    ) -> Result<Vec<HeadSparsity>, AttentionError> {
        let shape = self.options.shape;
        let exact_from = self.heads.first().map_or(0, |head| head.tail.first());
        let split = Split { window: self.state, exact_from, sinks: self.sinks };
        // Unpacking a block costs as much as a tile spends on it: do it once if several tiles follow.
        let several_tiles = q.tokens() > query_tile(shape.group());
        let streams: Vec<Vec<DeltaStream>> = self
            .heads
            .iter()
            .map(|head| if several_tiles { unpack(&head.keys) } else { Vec::new() })
            .collect();
        let phases: Vec<Vec<Phase>> = self
            .heads
            .iter()
            .zip(&streams)
            .map(|(head, streams)| {
                let phase = |keys, part| Phase { keys, values: &head.values, part, skip_margin: None };
                let far = phase(Keys::Delta(&head.keys, streams), Part::Far);
                if self.window.is_none() {
                    return vec![far];
                }
                // The exact phases come first: they fix the scores that a far value has to come near to.
                vec![
                    phase(Keys::Exact(&head.sinks), Part::Sinks),
                    phase(Keys::Exact(&head.tail), Part::Window),
                    Phase { skip_margin: self.skip_margin, ..far },
                ]
            })
            .collect();
        attend(&self.options, q, first, &split, &phases, out)
    }

    /// Fixes the window for the tokens `first..end` and returns the one before, should it have to come back.
    fn enter_window(&mut self, first: usize, end: usize) -> WindowState {
        let before = self.state;
        if let Some(window) = self.window {
            if first < self.prompt_end {
                self.state = WindowState::new(window, self.prompt_end);
            } else if end - first > 1 {
                self.state = WindowState::new(window, end);
            }
        }
        before
    }

    /// All heads or, if a number does not fit in `element`, none.
    fn narrow(&mut self, element: ElementType) -> Result<(), CoreError> {
        for HybridHead { keys, values, tail, sinks } in &self.heads {
            keys.check_narrow(element)?;
            [values, tail, sinks].into_iter().try_for_each(|rows| rows.check_narrow(element))?;
        }
        let charge = &mut self.charge;
        for HybridHead { keys, values, tail, sinks } in &mut self.heads {
            keys.narrow(element, charge)?;
            [values, tail, sinks].into_iter().try_for_each(|rows| rows.narrow(element, charge))?;
        }
        Ok(())
    }

    /// Raises the thresholds, if there are blocks that could shrink (the one being written keeps its room) and no bound on
    /// the scores forbids it.
    fn raise_thresholds(&mut self) -> Result<(), CoreError> {
        if self.error_bound.is_none() && self.raises < Self::MOST_RAISES && self.len() > BLOCK_TOKENS {
            self.raises += 1;
            self.heads.iter_mut().try_for_each(|head| head.keys.coarsen(Self::RAISE, &mut self.charge))?;
        }
        Ok(())
    }

    /// Drops exact copies that no later query can need.
    fn trim(&mut self) {
        let needed = self.state.needed_from(self.len());
        self.heads.iter_mut().for_each(|head| head.tail.drop_before(needed, &mut self.charge));
    }
}

fn unpack(keys: &DeltaMatrix) -> Vec<DeltaStream> {
    (0..keys.blocks())
        .map(|block| {
            let mut stream = DeltaStream::default();
            keys.stream(block, &mut stream);
            stream
        })
        .collect()
}

impl AttentionKernel for HybridAttention {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        check_inputs(&self.options, &q, &k, &v, &out)?;
        check_same_tokens(&q, &k)?;
        self.check_bound(&q)?;
        let first = self.len();
        let before = self.enter_window(first, first + k.tokens());
        match self.append(&k, &v).map_err(AttentionError::from).and_then(|()| self.attend(&q, first, out)) {
            Ok(counts) => {
                self.counts.iter_mut().zip(&counts).for_each(|(sum, more)| sum.add(more));
                self.trim();
                Ok(())
            }
            Err(error) => {
                self.roll_back(first);
                self.state = before;
                Err(error)
            }
        }
    }

    fn begin_prompt(&mut self, tokens: usize) {
        self.prompt_end = self.len().saturating_add(tokens);
    }

    fn len(&self) -> usize {
        // Values are pushed last, so the last head's values are the tokens that are complete.
        self.heads.last().map_or(0, |head| head.values.len())
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        if len > self.len() {
            return Err(CoreError::TruncateBeyondEnd { len: self.len(), got: len }.into());
        }
        self.roll_back(len);
        self.prompt_end = self.prompt_end.min(len);
        self.state.cut(len);
        Ok(())
    }

    fn footprint(&self) -> Footprint {
        let mut sum = Footprint::default();
        for head in &self.heads {
            sum += Footprint {
                keys: head.keys.key_bytes(),
                values: head.values.held_bytes(),
                window: head.tail.held_bytes() + head.sinks.held_bytes(),
                bookkeeping: head.keys.bookkeeping_bytes()
                    + head.values.bookkeeping_bytes()
                    + head.tail.bookkeeping_bytes()
                    + head.sinks.bookkeeping_bytes(),
            };
        }
        sum
    }

    fn stats(&self) -> SparsityStats {
        let heads = self.heads.iter().zip(&self.counts).map(|(head, counts)| HeadSparsity {
            elements: (head.keys.len() * head.keys.channels()) as u64,
            nonzeros: head.keys.nonzeros() as u64,
            ..*counts
        });
        SparsityStats::new(heads.collect())
    }

    fn growth(&self, tokens: usize) -> usize {
        let windowed = if self.window.is_some() { tokens } else { 0 };
        self.heads.iter().fold(0, |sum: usize, head| {
            let sinks = windowed.min(self.sinks.saturating_sub(head.sinks.len()));
            sum.saturating_add(head.keys.growth(tokens))
                .saturating_add(head.values.growth(tokens))
                .saturating_add(head.tail.growth(windowed))
                .saturating_add(head.sinks.growth(sinks))
        })
    }

    /// [`AtLimit::NarrowStore`] converts everything to f16. [`AtLimit::RaiseThresholds`] multiplies the thresholds by
    /// [`RAISE`](Self::RAISE) and codes the keys again; the exact window and the sinks stay exact. It helps at most
    /// [`MOST_RAISES`](Self::MOST_RAISES) times. Neither is undone by [`truncate`](AttentionKernel::truncate).
    fn relieve(&mut self, at_limit: AtLimit) -> Result<usize, AttentionError> {
        let held = self.charge.bytes();
        match at_limit {
            AtLimit::NarrowStore => self.narrow(ElementType::F16)?,
            AtLimit::RaiseThresholds => self.raise_thresholds()?,
            _ => {}
        }
        Ok(held - self.charge.bytes())
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
    options: &AttentionOptions,
    config: &HybridConfig,
    q: HeadsView,
    k: HeadsView,
    v: HeadsView,
    out: HeadsViewMut,
) -> Result<SparsityStats, AttentionError> {
    let mut attention = HybridAttention::new(options, config)?;
    check_inputs(options, &q, &k, &v, &out)?;
    attention.check_bound(&q)?;
    let first = first_position(&q, &k)?;
    attention.begin_prompt(k.tokens());
    attention.enter_window(0, k.tokens());
    attention.append(&k, &v)?;
    attention.counts = attention.attend(&q, first, out)?;
    Ok(attention.stats())
}
