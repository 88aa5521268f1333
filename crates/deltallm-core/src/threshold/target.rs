//! Thresholds that find a wanted zero fraction by themselves.

use std::sync::Arc;

use super::{head::HeadThresholds, profile::ThresholdProfile};
use crate::{check::check_layer, error::CoreError};

/// A zero fraction to be reached in one pass, without calibration: in every kv head a controller scales the thresholds,
/// token by token, until the wanted share of entries is zero.
///
/// The zero fraction of a head is within two points of the target after about 500 tokens, and then stays there; a target
/// is a statement about bytes and work, not about accuracy.
///
/// ```
/// use deltallm_core::{TargetSparsity, ThresholdPolicy};
///
/// let policy = ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.6));
/// assert_eq!(policy.for_layer(0, 2, 64)?[0].target(), Some(0.6));
/// assert!(ThresholdPolicy::TargetSparsity(TargetSparsity::new(1.5)).for_layer(0, 2, 64).is_err());
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TargetSparsity {
    zero_fraction: f32,
    start: Start,
}

#[derive(Debug, Clone, PartialEq)]
enum Start {
    Uniform(f32),
    Profile(Arc<ThresholdProfile>),
}

impl Default for TargetSparsity {
    /// The target for a model of which nothing is known: [`CAUTIOUS`](Self::CAUTIOUS).
    fn default() -> Self {
        Self::new(Self::CAUTIOUS)
    }
}

impl TargetSparsity {
    /// The threshold that the controller starts from when nothing is known about the keys.
    pub const START: f32 = 0.6;

    /// A zero fraction that costs little where nothing is known about the model; what it cost on four is in
    /// `docs/results/models.md`.
    pub const CAUTIOUS: f32 = 0.3;

    /// The share of zero entries to be reached, in 0..=1, with the same threshold for all channels of a head.
    pub fn new(zero_fraction: f32) -> Self {
        Self { zero_fraction, start: Start::Uniform(Self::START) }
    }

    /// Starts from calibrated thresholds, and keeps their proportions within each head.
    #[must_use]
    pub fn from_profile(self, profile: Arc<ThresholdProfile>) -> Self {
        Self { start: Start::Profile(profile), ..self }
    }

    /// The share of zero entries that is aimed at.
    pub fn zero_fraction(&self) -> f32 {
        self.zero_fraction
    }

    /// The calibrated thresholds that it starts from, if it does.
    pub fn profile(&self) -> Option<&Arc<ThresholdProfile>> {
        match &self.start {
            Start::Uniform(_) => None,
            Start::Profile(profile) => Some(profile),
        }
    }

    /// Thresholds of one layer, one per kv head.
    ///
    /// # Errors
    /// [`CoreError::ZeroFraction`] for a target outside of 0..=1, [`CoreError::ProfileShape`] when the profile does not fit,
    /// [`CoreError::Channels`] for none or for more than 2^20 channels.
    pub fn for_layer(
        &self,
        layer: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Vec<HeadThresholds>, CoreError> {
        let head = |start: Vec<f32>| HeadThresholds::with_target(start, self.zero_fraction);
        let heads: Vec<HeadThresholds> = match &self.start {
            Start::Uniform(theta) => {
                check_layer(kv_heads, head_dim)?;
                vec![head(vec![*theta; head_dim]); kv_heads]
            }
            Start::Profile(profile) => {
                let thresholds = profile.layer(layer, kv_heads, head_dim)?;
                thresholds.chunks_exact(head_dim).map(|start| head(start.to_vec())).collect()
            }
        };
        heads.iter().try_for_each(HeadThresholds::check)?;
        Ok(heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeltaEncoder, DeltaMatrix, ElementType, MemoryBudget};

    /// Keys of `d` channels that wander with very different strides, and jump at token 700.
    fn key(t: usize, d: usize, size: f32) -> Vec<f32> {
        let jump = if t >= 700 { 3.0 } else { 1.0 };
        let wave = |j: usize| (0.37 * ((t * (2 * j + 1)) as f32)).sin() + 0.2 * ((t * t + j) as f32).cos();
        (0..d).map(|j| jump * size * (j as f32 + 1.0) * wave(j)).collect()
    }

    #[test]
    fn the_target_is_reached_whatever_the_size_of_the_keys() {
        for target in [0.3, 0.6, 0.8] {
            for size in [0.01, 0.2, 5.0] {
                let head = &TargetSparsity::new(target).for_layer(0, 1, 64).unwrap()[0];
                let mut encoder = DeltaEncoder::new(head.clone(), ElementType::F32).unwrap();
                let mut sent = 0;
                for t in 0..2048 {
                    sent += encoder.encode(&key(t, 64, size)).unwrap()[0].count_ones();
                    // After the jump the controller needs some time again.
                    if (512..700).contains(&(t + 1)) || t >= 850 {
                        let zeros = 1.0 - sent as f32 / ((t + 1) * 64) as f32;
                        assert!((zeros - target).abs() <= 0.02, "target {target}, size {size}, {t}: {zeros}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_cut_cache_goes_on_as_if_the_tokens_had_never_been() {
        let head = &TargetSparsity::new(0.5).for_layer(0, 1, 8).unwrap()[0];
        let budget = MemoryBudget::unlimited();
        let filled = |tokens: usize| {
            let mut matrix = DeltaMatrix::new(head.clone(), ElementType::F16, &budget).unwrap();
            (0..tokens).for_each(|t| matrix.push(&key(t, 8, 0.5)).unwrap());
            matrix
        };
        for cut in [0, 1, 63, 64, 65, 130] {
            let mut matrix = filled(200);
            matrix.truncate(cut).unwrap();
            (cut..300).for_each(|t| matrix.push(&key(t, 8, 0.5)).unwrap());
            let whole = filled(300);
            assert_eq!(matrix.nonzeros(), whole.nonzeros(), "cut at {cut}");
            let [mut got, mut expected] = [Vec::new(), Vec::new()];
            for block in 0..whole.blocks() {
                matrix.reconstruct(block, &mut got);
                whole.reconstruct(block, &mut expected);
                assert_eq!(got, expected, "cut at {cut}, block {block}");
            }
        }
    }

    #[test]
    fn a_target_out_of_reach_does_no_harm() {
        for target in [0.0, 1.0] {
            let head = &TargetSparsity::new(target).for_layer(0, 1, 4).unwrap()[0];
            let mut encoder = DeltaEncoder::new(head.clone(), ElementType::F32).unwrap();
            for t in 0..5000 {
                encoder.encode(&key(t, 4, 1.0)).unwrap();
                assert!(encoder.thresholds().iter().all(|theta| theta.is_finite() && *theta >= 0.0));
            }
        }
    }

    #[test]
    fn a_target_starts_every_head_of_a_layer_from_its_own_thresholds() {
        let thresholds = (0..8).map(|i| i as f32).collect();
        let profile = ThresholdProfile::new(crate::ModelFingerprint(1), [2, 2, 2], thresholds).unwrap();
        let target = TargetSparsity::new(0.5).from_profile(Arc::new(profile));
        for (layer, expected) in [(0, [[0., 1.], [2., 3.]]), (1, [[4., 5.], [6., 7.]])] {
            let heads = target.for_layer(layer, 2, 2).unwrap();
            assert_eq!([heads[0].start(), heads[1].start()], expected);
        }
    }

    #[test]
    fn bad_targets_are_refused() {
        for bad in [-0.1, 1.1, f32::NAN] {
            let error = TargetSparsity::new(bad).for_layer(0, 1, 4).unwrap_err();
            assert!(matches!(error, CoreError::ZeroFraction { .. }), "{error}");
        }
    }
}
