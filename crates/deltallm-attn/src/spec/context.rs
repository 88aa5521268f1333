//! What kernels need besides their settings.

use std::sync::Arc;

use deltallm_core::MemoryBudget;

use crate::{AttentionOptions, AttentionShape, Isa, Mask};

/// What kernels need besides their settings: the heads of the model, and what they run on.
///
/// ```
/// use deltallm_attn::{AttentionShape, KernelContext, MemoryBudget};
///
/// let context = KernelContext::new(AttentionShape::new(9, 3, 64)?).budget(MemoryBudget::new(64 << 20));
/// assert!(context.budget.limit().is_some());
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KernelContext {
    /// Heads of a layer.
    pub shape: AttentionShape,
    /// Which keys the queries of each layer attend to; layers beyond are [causal](Mask::Causal).
    pub masks: Arc<[Mask]>,
    /// The learned numbers in the softmax's denominator of each layer ([`AttentionOptions::sink_logits`]); layers beyond have none.
    pub sink_logits: Arc<[Arc<[f32]>]>,
    /// Whether kernels keep the log-sum-exp of each query ([`AttentionOptions::log_sum_exp`]).
    pub log_sum_exp: bool,
    /// How many tokens can be taken back without a trace ([`AttentionOptions::exact_rewind`]).
    pub exact_rewind: usize,
    /// Instruction set.
    pub isa: Isa,
    /// The account that the caches' memory is charged to. Clones share it.
    pub budget: MemoryBudget,
    /// Whether to spread work over the current rayon pool ([`AttentionOptions::parallel`]).
    pub parallel: bool,
}

impl KernelContext {
    /// As [`AttentionOptions::default`] has it: the best instruction set of this machine, no limit on memory, parallel where the
    /// feature `rayon` is on.
    pub fn new(shape: AttentionShape) -> Self {
        let AttentionOptions { isa, budget, parallel, .. } = AttentionOptions::default();
        Self {
            shape,
            masks: Arc::default(),
            sink_logits: Arc::default(),
            log_sum_exp: false,
            exact_rewind: 0,
            isa,
            budget,
            parallel,
        }
    }

    /// Sets which keys the queries of each layer attend to.
    #[must_use]
    pub fn masks(self, masks: impl Into<Arc<[Mask]>>) -> Self {
        Self { masks: masks.into(), ..self }
    }

    /// Sets the [learned numbers](AttentionOptions#structfield.sink_logits) in the softmax's denominator, `[layers][heads]`.
    #[must_use]
    pub fn sink_logits(self, logits: impl Into<Arc<[Arc<[f32]>]>>) -> Self {
        Self { sink_logits: logits.into(), ..self }
    }

    /// Sets whether kernels keep the [log-sum-exp](crate::AttentionKernel::log_sum_exp) of the latest call.
    #[must_use]
    pub fn log_sum_exp(self, log_sum_exp: bool) -> Self {
        Self { log_sum_exp, ..self }
    }

    /// Sets the instruction set.
    #[must_use]
    pub fn isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// Sets how many tokens can be [taken back without a trace](AttentionOptions#structfield.exact_rewind).
    #[must_use]
    pub fn exact_rewind(self, tokens: usize) -> Self {
        Self { exact_rewind: tokens, ..self }
    }

    /// Sets the account that memory is charged to.
    #[must_use]
    pub fn budget(self, budget: MemoryBudget) -> Self {
        Self { budget, ..self }
    }

    /// Sets whether to spread work over the current rayon pool.
    #[must_use]
    pub fn parallel(self, parallel: bool) -> Self {
        Self { parallel, ..self }
    }

    /// Which keys the queries of a layer attend to.
    pub fn mask(&self, layer: usize) -> Mask {
        self.masks.get(layer).copied().unwrap_or_default()
    }
}
