//! What a calibration has found.

use std::sync::Arc;

use deltallm_core::{KvStore, ModelFingerprint, ThresholdProfile};

use crate::{AttentionError, AttentionProfile, CalibrationGoal, HeldOut, KernelSpec, Provenance, Verified};

/// The settings that a [`Calibrator`](super::Calibrator) has found, and what they cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Calibrated {
    /// The settings of all layers: an engine makes its kernels with [`KernelSpec::build`].
    pub spec: KernelSpec,
    /// What was asked for.
    pub goal: CalibrationGoal,
    /// Zero fraction on the calibration text.
    pub zero_fraction: f64,
    /// What the settings cost on the held-out text.
    pub held_out: HeldOut,
    /// What the thresholds alone cost there, before values were skipped.
    pub without_skipping: HeldOut,
    /// Tokens of the calibration text.
    pub tokens: usize,
    /// Tokens of its longest window.
    pub context: usize,
    /// What the settings cost at other lengths and on other text: empty at first, for who measures it.
    pub verified: Vec<Verified>,
    pub(super) thresholds: Arc<ThresholdProfile>,
}

impl Calibrated {
    /// The settings as a profile, which an engine can save: JSON with the feature `serde`, read by
    /// [`AttentionProfile`]. `model` ties it to the model; `name` says what the model is called, `text_sha256` which text was
    /// calibrated on, in hexadecimal digits (empty if you do not say).
    ///
    /// Whoever loads a profile chooses the store: it keeps only those of single layers.
    ///
    /// # Errors
    /// None for settings as they were found; [`AttentionError::Spec`] if `spec` has been changed since to what no kernel takes.
    pub fn profile(
        &self,
        model: ModelFingerprint,
        name: &str,
        text_sha256: &str,
    ) -> Result<AttentionProfile, AttentionError> {
        let thresholds =
            ThresholdProfile::new(model, self.thresholds.shape(), self.thresholds.thresholds().to_vec())?;
        let spec = KernelSpec { store: KvStore::F32, ..self.spec.clone() };
        Ok(AttentionProfile::new(Arc::new(thresholds), spec)?.with_provenance(Provenance {
            model: name.to_owned(),
            text_sha256: text_sha256.to_owned(),
            tokens: self.tokens,
            context: self.context,
            goal: self.goal,
            zero_fraction: self.zero_fraction,
            held_out: self.held_out,
            verified: self.verified.clone(),
        }))
    }
}
