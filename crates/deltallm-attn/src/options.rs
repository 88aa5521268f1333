//! Settings that every kernel shares.

use std::{ops::Range, sync::Arc};

use deltallm_core::{CoreError, ElementType, KvStore, MemoryBudget};

use crate::{AttentionError, AttentionShape, HeadsView, HeadsViewMut, Isa, Mask, Precision};

/// What an attention kernel needs to know besides its heads and its method.
///
/// ```
/// use deltallm_attn::{AttentionOptions, KvStore, MemoryBudget};
///
/// // For all layers of a model: they share the account.
/// let options = AttentionOptions::default().store(KvStore::Int8).budget(MemoryBudget::new(64 << 20));
/// assert_eq!(options.budget.available(), 64 << 20);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AttentionOptions {
    /// Scores are `q . k * scale`; `None` is 1/sqrt(head_dim), as nearly all models have it.
    pub scale: Option<f32>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2); `None` for most models.
    pub softcap: Option<f32>,
    /// A learned number for each query head that stands in the softmax's denominator like the score of one more key, whose value is
    /// zero: `[heads]` (gpt-oss). Not to be confused with [sinks](crate::HybridConfig::exact_sinks), first keys that are kept exactly.
    pub sink_logits: Option<Arc<[f32]>>,
    /// Which keys a query attends to.
    pub mask: Mask,
    /// Whether a kernel keeps the [log-sum-exp](crate::AttentionKernel::log_sum_exp) of each query of the latest call.
    pub log_sum_exp: bool,
    /// How many tokens [`truncate`](crate::AttentionKernel::truncate) can take back without a trace, so that what follows is what a cache answers
    /// that never went further: for speculation, and for the latest words of a chat. Exact copies of so many more keys (in
    /// stores that quantise, of their values too) are kept beside a window, and so much more of what a [mask](Self::mask) would drop; in the compact
    /// store, for so many tokens and if there is memory, the deltas of a head whose keys have come to be held whole. One thing leaves a trace: a
    /// [window in blocks](crate::ExactWindow::Block) is another one after another prompt.
    pub exact_rewind: usize,
    /// How keys and values are cached.
    pub store: KvStore,
    /// The account that the cache's memory is charged to. Clones share it.
    pub budget: MemoryBudget,
    /// Instruction set.
    pub isa: Isa,
    /// Arithmetic of prompts.
    pub precision: Precision,
    /// Whether to spread work over the current rayon pool. Needs the feature `rayon`; results do not depend on it.
    pub parallel: bool,
}

impl Default for AttentionOptions {
    /// Scale 1/sqrt(head_dim), causal attention, a cache in f16, no limit on memory, products of prompts in f32, the best instruction set of this
    /// machine, parallel where the feature `rayon` is on.
    ///
    /// The environment is not read. A program that lets `DELTALLM_SIMD` choose says so:
    ///
    /// ```
    /// use deltallm_attn::{AttentionOptions, Isa};
    ///
    /// let options = AttentionOptions::default().isa(Isa::from_env()?);
    /// # Ok::<(), deltallm_attn::IsaError>(())
    /// ```
    fn default() -> Self {
        Self {
            scale: None,
            softcap: None,
            sink_logits: None,
            mask: Mask::Causal,
            log_sum_exp: false,
            exact_rewind: 0,
            store: KvStore::F16,
            budget: MemoryBudget::unlimited(),
            isa: Isa::best(),
            precision: Precision::F32,
            parallel: cfg!(feature = "rayon"),
        }
    }
}

impl AttentionOptions {
    /// Sets the [`scale`](Self#structfield.scale) of scores: a number, or `None` for 1/sqrt(head_dim).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets the [`softcap`](Self#structfield.softcap) of scores: a number, or `None`.
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Sets the [learned numbers](Self#structfield.sink_logits) in the softmax's denominator, `[heads]`, or `None`.
    #[must_use]
    pub fn sink_logits(self, logits: impl Into<Option<Arc<[f32]>>>) -> Self {
        Self { sink_logits: logits.into(), ..self }
    }

    /// Sets whether kernels keep the [log-sum-exp](crate::AttentionKernel::log_sum_exp) of the latest call.
    #[must_use]
    pub fn log_sum_exp(self, log_sum_exp: bool) -> Self {
        Self { log_sum_exp, ..self }
    }

    /// Sets how many tokens can be [taken back without a trace](Self#structfield.exact_rewind).
    #[must_use]
    pub fn exact_rewind(self, tokens: usize) -> Self {
        Self { exact_rewind: tokens, ..self }
    }

    /// Sets which keys a query attends to.
    #[must_use]
    pub fn mask(self, mask: Mask) -> Self {
        Self { mask, ..self }
    }

    /// Sets how keys and values are cached.
    #[must_use]
    pub fn store(self, store: KvStore) -> Self {
        Self { store, ..self }
    }

    /// Sets the account that memory is charged to.
    #[must_use]
    pub fn budget(self, budget: MemoryBudget) -> Self {
        Self { budget, ..self }
    }

    /// Sets the instruction set.
    #[must_use]
    pub fn isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Sets the arithmetic of prompts.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Sets whether to spread work over the current rayon pool.
    #[must_use]
    pub fn parallel(self, parallel: bool) -> Self {
        Self { parallel, ..self }
    }
}

/// Options of a layer whose heads are known: checked, and with everything filled in.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) shape: AttentionShape,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
    pub(crate) sink_logits: Option<Arc<[f32]>>,
    pub(crate) mask: Mask,
    pub(crate) log_sum_exp: bool,
    pub(crate) exact_rewind: usize,
    pub(crate) store: KvStore,
    pub(crate) budget: MemoryBudget,
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
    pub(crate) parallel: bool,
}

impl Settings {
    /// The first key that a query attends to when `len` tokens are cached and as many as may be are taken back.
    pub(crate) fn first_seen(&self, len: usize) -> usize {
        // The latest query may come again.
        self.mask.first_key(len.saturating_sub(1).saturating_sub(self.exact_rewind))
    }

    /// Checks a call's arguments, for a cache that holds the tokens `held` and takes keys and values that fit these types; returns the
    /// position of its first query.
    pub(crate) fn first_query(
        &self,
        fits: [ElementType; 2],
        held: Range<usize>,
        q: &HeadsView,
        k: &HeadsView,
        v: &HeadsView,
        out: &HeadsViewMut,
    ) -> Result<usize, AttentionError> {
        match self.shape.check_call_for(fits, q, k, v, out)? {
            Some(before) => Ok(held.end + before),
            None => self.mask.first_query(q.tokens(), held.end, held.start),
        }
    }

    /// How many log-sum-exps a call is asked for.
    pub(crate) fn log_sums(&self, q: &HeadsView) -> usize {
        if self.log_sum_exp { q.tokens() * q.heads() } else { 0 }
    }

    /// Checks that a cache that holds the tokens `held` can be cut back to `len`.
    pub(crate) fn check_cut(&self, len: usize, held: Range<usize>) -> Result<(), AttentionError> {
        if len > held.end {
            return Err(CoreError::TruncateBeyondEnd { len: held.end, got: len }.into());
        }
        self.mask.check_cut(len, held.start)
    }

    /// The settings by which a cache can be told from others, each with its name: what is cached in one layer depends on what the layers
    /// before it answered.
    pub(crate) fn of_cache(&self) -> [(&'static str, String); 9] {
        let Self { shape, scale, softcap, sink_logits, mask, precision, exact_rewind, .. } = self;
        [
            ("kv heads", shape.kv_heads().to_string()),
            ("channels of a key", shape.head_dim().to_string()),
            ("channels of a value", shape.value_dim().to_string()),
            ("scale", scale.to_string()),
            ("soft cap", format!("{softcap:?}")),
            ("sink logits", format!("{sink_logits:?}")),
            ("mask", mask.to_string()),
            ("precision", format!("{precision:?}")),
            ("exact rewind", exact_rewind.to_string()),
        ]
    }

    /// # Errors
    /// [`AttentionError::Setting`] for a scale or soft cap that is not a finite positive number, a mask of no tokens, and sink logits that are not finite;
    /// [`AttentionError::Shape`] for sink logits of another number of heads.
    pub(crate) fn new(shape: AttentionShape, options: AttentionOptions) -> Result<Self, AttentionError> {
        let positive = |setting, value: f32| {
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            Err(AttentionError::Setting { setting, expected: "a finite number > 0", got: f64::from(value) })
        };
        let AttentionOptions {
            scale,
            softcap,
            sink_logits,
            mask,
            log_sum_exp,
            exact_rewind,
            store,
            budget,
            isa,
            precision,
            parallel,
        } = options;
        mask.check()?;
        if let Some(logits) = &sink_logits {
            let wrong = |expected, got| AttentionError::Shape {
                input: "sink logits",
                dimension: "heads",
                expected,
                got,
            };
            if logits.len() != shape.heads() {
                return Err(wrong(shape.heads(), logits.len()));
            }
            if let Some(got) = logits.iter().find(|logit| !logit.is_finite()) {
                let got = f64::from(*got);
                return Err(AttentionError::Setting {
                    setting: "sink logits",
                    expected: "finite numbers",
                    got,
                });
            }
        }
        Ok(Self {
            shape,
            scale: positive("scale", scale.unwrap_or_else(|| 1.0 / (shape.head_dim() as f32).sqrt()))?,
            softcap: softcap.map(|cap| positive("softcap", cap)).transpose()?,
            sink_logits,
            mask,
            log_sum_exp,
            exact_rewind,
            store,
            budget,
            isa,
            precision,
            parallel,
        })
    }
}
