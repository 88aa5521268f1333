//! Settings that every kernel shares.

use deltallm_core::{KvStore, MemoryBudget};

use crate::{AttentionError, AttentionShape, Isa, Mask, Precision};

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
    /// Which keys a query attends to.
    pub mask: Mask,
    /// How keys and values are cached. Arithmetic is f32.
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
            mask: Mask::Causal,
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
    pub(crate) mask: Mask,
    pub(crate) store: KvStore,
    pub(crate) budget: MemoryBudget,
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
    pub(crate) parallel: bool,
}

impl Settings {
    /// # Errors
    /// [`AttentionError::Setting`] for a scale or soft cap that is not a finite positive number, and a mask of no tokens.
    pub(crate) fn new(shape: AttentionShape, options: AttentionOptions) -> Result<Self, AttentionError> {
        let positive = |setting, value: f32| {
            if value.is_finite() && value > 0.0 {
                return Ok(value);
            }
            Err(AttentionError::Setting { setting, expected: "a finite number > 0", got: f64::from(value) })
        };
        let AttentionOptions { scale, softcap, mask, store, budget, isa, precision, parallel } = options;
        mask.check()?;
        Ok(Self {
            shape,
            scale: positive("scale", scale.unwrap_or_else(|| 1.0 / (shape.head_dim() as f32).sqrt()))?,
            softcap: softcap.map(|cap| positive("softcap", cap)).transpose()?,
            mask,
            store,
            budget,
            isa,
            precision,
            parallel,
        })
    }
}
