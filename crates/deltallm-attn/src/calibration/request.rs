//! What is asked of a calibration.

use deltallm_core::KvStore;

use super::error::CalibrationError;
use crate::{AttentionError, CalibrationGoal, ExactWindow};

/// What to calibrate for.
///
/// ```
/// use deltallm_attn::{CalibrationGoal, KvStore, calibration::CalibrationRequest};
///
/// // As many zeros and skipped values as a divergence of 0.01 nats from dense attention allows, in the smallest cache.
/// let request = CalibrationRequest::new(CalibrationGoal::Kl(0.01)).store(KvStore::Compact);
/// assert_eq!((request.exact_window, request.exact_sinks, request.skips), (64, 4, true));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct CalibrationRequest {
    /// What to reach.
    pub goal: CalibrationGoal,
    /// Latest keys that are scored exactly: a sliding window, at least 1.
    pub exact_window: usize,
    /// First keys of the sequence, always scored exactly.
    pub exact_sinks: usize,
    /// Whether a margin of value skipping is looked for.
    pub skips: bool,
    /// Prompts of up to this many tokens are attended exactly in every layer; `None` is for each layer as many as it gains nothing
    /// from.
    pub exact_prompt: Option<usize>,
    /// Cache to calibrate for. A layer that skips little is given the exact form of a store that quantises
    /// ([`KvStore::exact`]).
    pub store: KvStore,
    /// Scores are `q . k * scale`; `None` is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Scores become `cap * tanh(score / cap)` (Gemma 2); `None` for most models.
    pub softcap: Option<f32>,
}

impl CalibrationRequest {
    /// A window of 64 keys, 4 sinks, a margin of value skipping, a cache in f16.
    pub fn new(goal: CalibrationGoal) -> Self {
        Self {
            goal,
            exact_window: 64,
            exact_sinks: 4,
            skips: true,
            exact_prompt: None,
            store: KvStore::F16,
            scale: None,
            softcap: None,
        }
    }

    /// Sets how many of the latest keys are scored exactly.
    #[must_use]
    pub fn exact_window(self, keys: usize) -> Self {
        Self { exact_window: keys, ..self }
    }

    /// Sets how many of the first keys are always scored exactly.
    #[must_use]
    pub fn exact_sinks(self, keys: usize) -> Self {
        Self { exact_sinks: keys, ..self }
    }

    /// Sets whether a margin of value skipping is looked for.
    #[must_use]
    pub fn skips(self, skips: bool) -> Self {
        Self { skips, ..self }
    }

    /// Sets up to how many tokens a prompt is attended exactly: a number for all layers, or `None`.
    #[must_use]
    pub fn exact_prompt(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { exact_prompt: tokens.into(), ..self }
    }

    /// Sets the cache to calibrate for.
    #[must_use]
    pub fn store(self, store: KvStore) -> Self {
        Self { store, ..self }
    }

    /// Sets the scale of scores: a number, or `None` for 1/sqrt(head_dim).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets the soft cap of scores: a number, or `None`.
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Keys that are scored exactly for every query.
    pub(super) fn exact_keys(&self) -> usize {
        self.exact_window.saturating_add(self.exact_sinks)
    }

    pub(super) fn check(&self) -> Result<(), CalibrationError> {
        let outside = |setting, expected, got| Err(AttentionError::Setting { setting, expected, got }.into());
        match self.goal {
            CalibrationGoal::ZeroFraction(share) if !(0.0..1.0).contains(&share) => {
                return outside("zero fraction", "a number >= 0 and < 1", share);
            }
            CalibrationGoal::Kl(nats) if !(nats.is_finite() && nats > 0.0) => {
                return outside("divergence", "a finite number of nats > 0", nats);
            }
            _ => {}
        }
        for (setting, number) in [("scale", self.scale), ("softcap", self.softcap)] {
            if let Some(got) = number.filter(|number| !(number.is_finite() && *number > 0.0)) {
                return outside(setting, "a finite number > 0", f64::from(got));
            }
        }
        Ok(ExactWindow::Sliding(self.exact_window).check()?)
    }
}
