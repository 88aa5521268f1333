//! Which threshold each layer, kv head and channel gets.

mod head;
#[cfg(feature = "serde")]
mod json;
mod profile;
mod target;

use std::sync::Arc;

use crate::{check::check_layer, error::CoreError};

pub use head::HeadThresholds;
pub use profile::ThresholdProfile;
pub use target::TargetSparsity;

/// Where the thresholds of the delta encoders come from.
///
/// ```
/// use deltallm_core::{DeltaEncoder, ElementType, TargetSparsity, ThresholdPolicy};
///
/// // Half of the entries are to be zero, whatever the keys are like.
/// let policy = ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.5));
/// let [head] = &policy.for_layer(0, 1, 64)?[..] else { panic!("one kv head") };
/// let mut encoder = DeltaEncoder::new(head.clone(), ElementType::F32)?;
/// let mut sent = 0;
/// for t in 0..1000 {
///     let key: Vec<f32> = (0..64).map(|j| (0.1 * (t * (j + 1)) as f32).sin()).collect();
///     sent += encoder.encode(&key)?[0].count_ones();
/// }
/// assert!((0.49..0.51).contains(&(sent as f32 / 64_000.0)));
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
///
/// In JSON (feature `serde`) it is `{"theta": 0.6}`, `{"target_sparsity": 0.3}` or `{"channels": [...]}`. The list does not say what
/// heads it has: it is read as a profile of one layer and one head of that many channels.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ThresholdPolicy {
    /// One value for everything, in the units of the keys: the paper's rule.
    Uniform(f32),
    /// One value per layer, kv head and channel, from a calibration.
    Profile(Arc<ThresholdProfile>),
    /// Thresholds that rise and fall until the wanted share of entries is zero.
    TargetSparsity(TargetSparsity),
}

impl ThresholdPolicy {
    /// Thresholds of one layer, one per kv head.
    ///
    /// # Errors
    /// [`CoreError::Threshold`] for a value that is negative or not finite, [`CoreError::ProfileShape`] when a profile
    /// has other dimensions or too few layers, [`CoreError::Channels`] for none or for more than 2^20 channels, and what
    /// [`TargetSparsity`] refuses.
    pub fn for_layer(
        &self,
        layer: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Vec<HeadThresholds>, CoreError> {
        let fixed = |heads: &[f32]| heads.chunks_exact(head_dim).map(|head| head.to_vec().into()).collect();
        match self {
            Self::Uniform(theta) => {
                check_layer(kv_heads, head_dim)?;
                let head = HeadThresholds::from(vec![*theta; head_dim]);
                head.check()?;
                Ok(vec![head; kv_heads])
            }
            Self::Profile(profile) => profile.layer(layer, kv_heads, head_dim).map(fixed),
            Self::TargetSparsity(target) => target.for_layer(layer, kv_heads, head_dim),
        }
    }
}
