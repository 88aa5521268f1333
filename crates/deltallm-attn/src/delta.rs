//! Delta attention without a window: the paper's ablation.

use deltallm_core::{AtLimit, Footprint, SparsityStats, ThresholdPolicy};

use crate::{
    AttentionError, AttentionKernel, AttentionOptions, HeadsView, HeadsViewMut, HybridAttention, HybridConfig,
};

/// Delta attention everywhere: every key, the query's own included, is seen through its reconstruction.
///
/// ```
/// use deltallm_attn::{AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, ThresholdPolicy};
///
/// let options = AttentionOptions::new(AttentionShape::new(4, 2, 8)?);
/// let attention = DeltaAttention::new(&options, ThresholdPolicy::Uniform(0.5), 0)?;
/// assert!(attention.is_empty());
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug)]
pub struct DeltaAttention(HybridAttention);

impl DeltaAttention {
    /// An empty cache for layer `layer` of the policy.
    ///
    /// # Errors
    /// [`AttentionError::Setting`] for a scale or soft cap out of range; [`AttentionError::Core`] when the thresholds
    /// are not for this layer; [`AttentionError::Store`] for stores without deltas.
    pub fn new(
        options: &AttentionOptions,
        thresholds: ThresholdPolicy,
        layer: usize,
    ) -> Result<Self, AttentionError> {
        let config = HybridConfig { layer, ..HybridConfig::new(thresholds) };
        HybridAttention::with_window(options, &config, None).map(Self)
    }
}

impl AttentionKernel for DeltaAttention {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        self.0.forward_heads(q, k, v, out)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        self.0.truncate(len)
    }

    fn footprint(&self) -> Footprint {
        self.0.footprint()
    }

    fn stats(&self) -> SparsityStats {
        self.0.stats()
    }

    fn growth(&self, tokens: usize) -> usize {
        self.0.growth(tokens)
    }

    fn relieve(&mut self, at_limit: AtLimit) -> Result<usize, AttentionError> {
        self.0.relieve(at_limit)
    }
}
