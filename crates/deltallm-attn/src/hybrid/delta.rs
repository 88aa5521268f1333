//! Delta attention without a window: the paper's ablation.

use deltallm_core::ThresholdPolicy;

use crate::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, HybridAttention, HybridConfig,
    KernelWrapper,
};

/// Delta attention everywhere: every key, the query's own included, is seen through its reconstruction.
///
/// ```
/// use deltallm_attn::{AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, ThresholdPolicy};
///
/// let (shape, options) = (AttentionShape::new(4, 2, 8)?, AttentionOptions::default());
/// let attention = DeltaAttention::new(shape, ThresholdPolicy::Uniform(0.5), 0, options)?;
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
        shape: AttentionShape,
        thresholds: ThresholdPolicy,
        layer: usize,
        options: AttentionOptions,
    ) -> Result<Self, AttentionError> {
        let config = HybridConfig::new(thresholds).layer(layer).options(options);
        HybridAttention::with_window(shape, config, None).map(Self)
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

    fn fork_wrapped(&self) -> Option<Box<dyn AttentionKernel>> {
        Some(Box::new(Self(self.0.forked())))
    }
}
