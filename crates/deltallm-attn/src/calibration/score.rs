//! What a setting costs, and what it saves.

use deltallm_core::{HeadSparsity, SparsityStats};

use super::error::CalibrationError;
use crate::{AttentionError, HeldOut};

/// What a setting costs on held-out text, beside dense attention with an exact cache, and what it saves in every layer.
///
/// The search reads [`kl`](Self::kl) and [`layers`](Self::layers); the rest goes into the report of what was found. An engine
/// that can give logits lets [`HeldOutText`](super::HeldOutText) make it.
///
/// ```
/// use deltallm_attn::{SparsityStats, calibration::Score};
///
/// let score = Score { tokens: 2048, kl: 0.004, layers: vec![SparsityStats::default(); 2], ..Score::default() };
/// assert_eq!(score.held_out().kl, 0.004);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// Tokens scored.
    pub tokens: usize,
    /// Perplexity of dense attention.
    pub perplexity_dense: f64,
    /// Relative change of perplexity.
    pub perplexity_change: f64,
    /// Mean KL divergence of the next-token distributions from the dense ones, nats.
    pub kl: f64,
    /// Share of tokens with the same most probable prediction.
    pub top1_agreement: f64,
    /// Of every layer the [statistics of its kernel](crate::AttentionKernel::stats), summed over the windows.
    pub layers: Vec<SparsityStats>,
}

impl Score {
    /// The same with the sparsity of all layers together, as a profile keeps it.
    pub fn held_out(&self) -> HeldOut {
        let mut sparsity = HeadSparsity::default();
        self.layers.iter().for_each(|layer| sparsity += layer.total());
        HeldOut {
            tokens: self.tokens,
            zero_fraction: sparsity.zero_fraction(),
            sparsity: sparsity.sparsity(),
            values_skipped: sparsity.values_skipped(),
            perplexity_dense: self.perplexity_dense,
            perplexity_change: self.perplexity_change,
            kl: self.kl,
            top1_agreement: self.top1_agreement,
        }
    }

    /// Whether the search can go by it, for a model of so many layers.
    pub(super) fn check(&self, layers: usize) -> Result<(), CalibrationError> {
        if self.layers.len() != layers {
            let (input, dimension, got) = ("score", "layers", self.layers.len());
            return Err(AttentionError::Shape { input, dimension, expected: layers, got }.into());
        }
        if self.kl.is_nan() {
            let (setting, expected, got) = ("kl of a score", "a number of nats", self.kl);
            return Err(AttentionError::Setting { setting, expected, got }.into());
        }
        Ok(())
    }
}
