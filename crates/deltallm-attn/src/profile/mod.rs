//! What a calibration has found for a model: thresholds, window, and what each layer is to do.

#[cfg(feature = "serde")]
mod stored;

use std::sync::Arc;

use deltallm_core::{CoreError, ModelFingerprint, ThresholdPolicy, ThresholdProfile};

use crate::{AttentionError, AttentionShape, KernelSpec};

/// The attention settings of all layers of one model, as `calibrate` writes them.
///
/// With the feature `serde` it reads and writes as JSON; every check of [`new`](Self::new) is made again on reading. The
/// format is described in `docs/formats.md`.
///
/// ```
/// use std::sync::Arc;
/// use deltallm_attn::{AttentionKernel, AttentionProfile, AttentionShape, KernelContext, KernelSpec, KvStore, LayerSpec, SpecOverrides};
/// use deltallm_core::{ModelFingerprint, ThresholdProfile};
///
/// // Two layers with 2 kv heads of 8 channels; the first is to stay exact.
/// let thresholds = ThresholdProfile::new(ModelFingerprint(1), [2, 2, 8], vec![0.5; 32])?;
/// let layers = vec![LayerSpec::default().dense(true), LayerSpec::default()];
/// let profile = AttentionProfile::new(Arc::new(thresholds), KernelSpec::default().layers(layers))?;
/// profile.check(ModelFingerprint(1), [2, 2, 8])?;
///
/// // What the caller decides comes on top.
/// let spec = profile.spec().clone().with(&SpecOverrides::default().store(KvStore::F16));
/// let context = KernelContext::new(AttentionShape::new(4, 2, 8)?);
/// let kernels: Vec<_> = (0..2).map(|layer| spec.build(layer, &context)).collect::<Result<_, _>>()?;
/// assert!(kernels.iter().all(|kernel| kernel.is_empty()));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "stored::StoredProfile", into = "stored::StoredProfile")
)]
pub struct AttentionProfile {
    thresholds: Arc<ThresholdProfile>,
    /// With these thresholds.
    spec: KernelSpec,
    provenance: Option<Provenance>,
}

/// How a profile came about, and what it was measured to cost.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Provenance {
    /// Name of the model's file.
    pub model: String,
    /// SHA-256 of the calibration text, in hexadecimal digits.
    pub text_sha256: String,
    /// Tokens of the text that were used, in windows of `context`.
    pub tokens: usize,
    /// Tokens of a window.
    pub context: usize,
    /// What was asked for.
    pub goal: CalibrationGoal,
    /// Zero fraction on the calibration text.
    pub zero_fraction: f64,
    /// Accuracy on text that was not used for the calibration, in windows of `context`.
    pub held_out: HeldOut,
    /// The same at other lengths, and on other text, if that was measured.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    pub verified: Vec<Verified>,
}

/// What the settings cost at one length.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct Verified {
    /// Tokens of a window.
    pub context: usize,
    /// Whether the text is one by which nothing was chosen; otherwise it is the one held out, by which the settings were chosen.
    pub unseen: bool,
    /// What was measured, with no prompt attended exactly.
    pub cost: HeldOut,
}

impl Provenance {
    /// The longest text for which it is known what the settings cost, in tokens. Longer ones cost more.
    pub fn longest(&self) -> usize {
        self.verified.iter().map(|verified| verified.context).fold(self.context, usize::max)
    }
}

/// What is asked of a calibration.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum CalibrationGoal {
    /// This share of zero entries.
    ZeroFraction(f64),
    /// As many zeros and skipped values as this divergence from dense attention allows, nats.
    Kl(f64),
}

/// Accuracy against dense attention, with the same cache type.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct HeldOut {
    /// Tokens scored.
    pub tokens: usize,
    /// Share of zero entries.
    pub zero_fraction: f64,
    /// The same times the share of pairs that are not exact.
    pub sparsity: f64,
    /// Share of far values that were skipped.
    pub values_skipped: f64,
    /// Perplexity of dense attention.
    pub perplexity_dense: f64,
    /// Relative change of perplexity.
    pub perplexity_change: f64,
    /// Mean KL divergence of the next-token distributions from the dense ones, nats.
    pub kl: f64,
    /// Share of tokens with the same most probable prediction.
    pub top1_agreement: f64,
}

impl AttentionProfile {
    /// Settings for all layers of the threshold profile; they get its thresholds, whatever thresholds they had.
    ///
    /// # Errors
    /// [`AttentionError::Spec`] for settings that no kernel takes, or are not for that many layers.
    pub fn new(thresholds: Arc<ThresholdProfile>, spec: KernelSpec) -> Result<Self, AttentionError> {
        let spec = KernelSpec { thresholds: ThresholdPolicy::Profile(Arc::clone(&thresholds)), ..spec };
        let [layers, kv_heads, head_dim] = thresholds.shape();
        spec.validate(AttentionShape::new(kv_heads, kv_heads, head_dim)?, layers)?;
        Ok(Self { thresholds, spec, provenance: None })
    }

    /// Adds how the profile came about.
    #[must_use]
    pub fn with_provenance(self, provenance: Provenance) -> Self {
        Self { provenance: Some(provenance), ..self }
    }

    /// Checks that the profile belongs to a model of this fingerprint and shape, `[layers, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`CoreError::ProfileModel`] or [`CoreError::ProfileShape`], naming what was expected and what the profile has.
    pub fn check(&self, model: ModelFingerprint, shape: [usize; 3]) -> Result<(), CoreError> {
        self.thresholds.check(model, shape)
    }

    /// The thresholds.
    pub fn thresholds(&self) -> &Arc<ThresholdProfile> {
        &self.thresholds
    }

    /// The settings, with these thresholds.
    pub fn spec(&self) -> &KernelSpec {
        &self.spec
    }

    /// How the profile came about, if it says so.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExactWindow, LayerSpec, SkipMargin};

    fn thresholds() -> Arc<ThresholdProfile> {
        let thresholds = (0..8).map(|i| i as f32 / 8.0).collect();
        Arc::new(ThresholdProfile::new(ModelFingerprint(7), [2, 1, 4], thresholds).unwrap())
    }

    #[cfg(feature = "serde")]
    fn profile() -> AttentionProfile {
        let layers = vec![
            LayerSpec { dense: true, ..LayerSpec::default() },
            LayerSpec {
                exact_prompt: Some(19),
                skip_margin: Some(SkipMargin::length(0.5, 0.6)),
                store: Some(deltallm_core::KvStore::Bf16),
                ..LayerSpec::default()
            },
        ];
        let spec = KernelSpec {
            exact_window: ExactWindow::Sliding(8),
            exact_sinks: 2,
            layers,
            ..KernelSpec::default()
        };
        AttentionProfile::new(thresholds(), spec).unwrap()
    }

    #[test]
    fn layers_that_do_not_fit_are_refused() {
        let new = |window, layers| {
            AttentionProfile::new(
                thresholds(),
                KernelSpec { exact_window: window, layers, ..KernelSpec::default() },
            )
        };
        assert!(new(ExactWindow::Sliding(8), vec![LayerSpec::default()]).is_err());
        assert!(new(ExactWindow::Sliding(0), vec![LayerSpec::default(); 2]).is_err());
        let bad = LayerSpec { skip_margin: Some(SkipMargin::Fixed(-1.0)), ..LayerSpec::default() };
        let error = new(ExactWindow::Sliding(8), vec![LayerSpec::default(), bad]).unwrap_err().to_string();
        assert_eq!(error, "layers[1].skip_margin: expected a finite number of nats > 0, got -1");
        new(ExactWindow::Sliding(8), Vec::new()).unwrap();
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_reads_back_and_is_checked() {
        let json = serde_json::to_string(&profile()).unwrap();
        assert_eq!(serde_json::from_str::<AttentionProfile>(&json).unwrap(), profile());
        for (from, to, complaint) in [
            ("\"head_dim\":4", "\"head_dim\":3", "expected thresholds = 6, got 8"),
            ("0.875", "-0.875", "finite number >= 0, got -0.875"),
            ("0.875", "1e999", "number out of range"),
            ("0.875", "null", "invalid type: null"),
            ("\"channels\":", "\"channels\":[0.5],\"channels\":", "expected value"),
            ("\"sinks\"", "\"basins\"", "unknown field"),
            ("\"dense\"", "\"tense\"", "unknown field `tense`"),
            ("\"spec\"", "\"specs\"", "unknown field `specs`"),
            ("0000000000000007", "seven", "16 hexadecimal digits"),
            ("\"0.6ln+0.5\"", "\"0.5+ln\"", "skip margin: expected a number of nats"),
            ("\"window\":\"8\"", "\"window\":\"0\"", "window: expected a number of keys"),
        ] {
            assert!(json.contains(from), "{from} is not in {json}");
            let json = json.replace(from, to);
            let error = serde_json::from_str::<AttentionProfile>(&json).unwrap_err().to_string();
            assert!(error.contains(complaint), "{from} -> {to}: {error}");
        }
        let (channels, end) = (json.find("{\"channels\"").unwrap(), json.find("]}").unwrap() + 2);
        for other in ["{\"theta\":0.5}", "{\"target_sparsity\":0.5}"] {
            let json = format!("{}{other}{}", &json[..channels], &json[end..]);
            let error = serde_json::from_str::<AttentionProfile>(&json).unwrap_err().to_string();
            assert!(error.contains("thresholds: expected channels"), "{error}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_profile_says_for_which_lengths_it_is_good_and_one_without_for_its_own() {
        let cost = HeldOut {
            tokens: 64,
            zero_fraction: 0.5,
            sparsity: 0.4,
            values_skipped: 0.3,
            perplexity_dense: 9.0,
            perplexity_change: 0.01,
            kl: 0.002,
            top1_agreement: 0.98,
        };
        let provenance = Provenance {
            model: "m".to_owned(),
            text_sha256: String::new(),
            tokens: 64,
            context: 32,
            goal: CalibrationGoal::Kl(0.01),
            zero_fraction: 0.5,
            held_out: cost,
            verified: Vec::new(),
        };
        let old = serde_json::to_string(&profile().with_provenance(provenance.clone())).unwrap();
        assert!(!old.contains("verified"), "{old}");
        let read = serde_json::from_str::<AttentionProfile>(&old).unwrap();
        assert_eq!(read.provenance().map(Provenance::longest), Some(32));

        let verified = [16, 64].map(|context| Verified { context, unseen: true, cost });
        let new = profile().with_provenance(Provenance { verified: verified.to_vec(), ..provenance });
        let read = serde_json::from_str::<AttentionProfile>(&serde_json::to_string(&new).unwrap()).unwrap();
        assert_eq!((read.provenance().map(Provenance::longest), &read), (Some(64), &new));
    }

    /// As `calibrate` wrote them before.
    #[cfg(feature = "serde")]
    #[test]
    fn older_versions_are_refused_with_the_command_that_makes_a_new_one() {
        for version in [1, 2] {
            let old = format!(
                r#"{{"version":{version},"model":"0000000000000007","kv_heads":1,"head_dim":2,"window":"8","sinks":2,
                "provenance":null,"layers":[{{"dense":true,"skip_margin":null,"store":null,"thresholds":[0.0,0.5]}}]}}"#
            );
            let error = serde_json::from_str::<AttentionProfile>(&old).unwrap_err().to_string();
            let expected = format!(
                "expected a profile of version 3, got version {version}: make a new one with `calibrate --model"
            );
            assert!(error.contains(&expected), "{error}");
        }
    }
}
