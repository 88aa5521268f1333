//! Delta attention without a window: the paper's ablation.

use deltallm_core::ThresholdPolicy;

use crate::{AttentionError, AttentionOptions, HybridAttention, HybridConfig, KernelWrapper};

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

/// Hybrid attention whose window is empty.
impl KernelWrapper for DeltaAttention {
    type Inner = HybridAttention;

    fn inner(&self) -> &HybridAttention {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut HybridAttention {
        &mut self.0
    }
}
