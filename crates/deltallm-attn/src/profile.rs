//! What a calibration has found for a model: thresholds, window, and what each layer is to do.

use std::sync::Arc;

use deltallm_core::{CoreError, KvStore, ModelFingerprint, ThresholdPolicy, ThresholdProfile};

use crate::{
    AttentionError, AttentionKernel, AttentionOptions, DenseAttention, HybridAttention, HybridConfig,
    SkipMargin, Window,
};

/// The attention settings of all layers of one model, as `calibrate` writes them.
///
/// With the feature `serde` it reads and writes as JSON; every check of [`new`](Self::new) is made again on reading. The
/// format is described in `docs/formats.md`.
///
/// ```
/// use std::sync::Arc;
/// use deltallm_attn::{AttentionKernel, AttentionOptions, AttentionProfile, AttentionShape, LayerPlan, Window};
/// use deltallm_core::{ModelFingerprint, ThresholdProfile};
///
/// // Two layers with 2 kv heads of 8 channels; the first is to stay exact.
/// let thresholds = ThresholdProfile::new(ModelFingerprint(1), [2, 2, 8], vec![0.5; 32])?;
/// let layers = vec![LayerPlan { dense: true, ..LayerPlan::default() }, LayerPlan::default()];
/// let profile = AttentionProfile::new(Arc::new(thresholds), Window::Sliding(64), 4, layers)?;
/// profile.check(ModelFingerprint(1), [2, 2, 8])?;
///
/// let options = AttentionOptions::new(AttentionShape::new(4, 2, 8)?);
/// let kernels: Vec<_> = (0..2).map(|layer| profile.kernel(&options, layer)).collect::<Result<_, _>>()?;
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
    window: Window,
    sinks: usize,
    layers: Vec<LayerPlan>,
    provenance: Option<Provenance>,
}

/// What one layer does.
///
/// ```
/// use deltallm_attn::{KvStore, LayerPlan};
///
/// let plan = LayerPlan { store: Some(KvStore::Int8), exact_prompt: 800, ..LayerPlan::default() };
/// assert!(!plan.dense && plan.skip_margin.is_none());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(deny_unknown_fields))]
pub struct LayerPlan {
    /// Exact attention, because deltas and skipping would gain nothing here.
    pub dense: bool,
    /// Prompts that end within this many tokens are attended exactly ([`HybridConfig::exact_prompt`]), because with so few
    /// keys nothing would be gained.
    #[cfg_attr(feature = "serde", serde(default))]
    pub exact_prompt: usize,
    /// Margin of value skipping.
    pub skip_margin: Option<SkipMargin>,
    /// Store of this layer's cache, if it is to differ from that of the others; a dense layer takes the nearest that dense
    /// attention has ([`KvStore::dense`]).
    pub store: Option<KvStore>,
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
    /// Accuracy on text that was not used for the calibration.
    pub held_out: HeldOut,
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
    /// Settings for all layers of the threshold profile.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] when there is not one plan per layer; [`AttentionError::Setting`] for a window or a
    /// margin out of range.
    pub fn new(
        thresholds: Arc<ThresholdProfile>,
        window: Window,
        sinks: usize,
        layers: Vec<LayerPlan>,
    ) -> Result<Self, AttentionError> {
        let [expected, ..] = thresholds.shape();
        if layers.len() != expected {
            let (what, got) = ("layer plans", layers.len());
            return Err(CoreError::ProfileShape { what, expected, got }.into());
        }
        window.check()?;
        layers.iter().filter_map(|layer| layer.skip_margin).try_for_each(SkipMargin::check)?;
        Ok(Self { thresholds, window, sinks, layers, provenance: None })
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

    /// Keys scored exactly.
    pub fn window(&self) -> Window {
        self.window
    }

    /// First keys that are always scored exactly.
    pub fn sinks(&self) -> usize {
        self.sinks
    }

    /// One plan per layer.
    pub fn layers(&self) -> &[LayerPlan] {
        &self.layers
    }

    /// How the profile came about, if it says so.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// The kernel of one layer, with an empty cache.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] for a layer that the profile does not have, or heads of another shape.
    pub fn kernel(
        &self,
        options: &AttentionOptions,
        layer: usize,
    ) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        let Some(plan) = self.layers.get(layer) else {
            let (expected, got) = (layer + 1, self.layers.len());
            return Err(CoreError::ProfileShape { what: "layers", expected, got }.into());
        };
        let store = plan.store.unwrap_or(options.store);
        if plan.dense {
            let options = AttentionOptions { store: store.dense(), ..options.clone() };
            return Ok(Box::new(DenseAttention::new(&options)?));
        }
        let options = AttentionOptions { store, ..options.clone() };
        let config = HybridConfig {
            thresholds: ThresholdPolicy::Profile(self.thresholds.clone()),
            layer,
            window: self.window,
            exact_prompt: plan.exact_prompt,
            sinks: self.sinks,
            skip_margin: plan.skip_margin,
        };
        Ok(Box::new(HybridAttention::new(&options, &config)?))
    }
}

#[cfg(feature = "serde")]
mod stored {
    //! The JSON form of a profile.

    use std::sync::Arc;

    use deltallm_core::{CoreError, ModelFingerprint, ThresholdProfile};
    use serde::{Deserialize, Deserializer, de::Error};

    use super::{AttentionProfile, LayerPlan, Provenance};
    use crate::{AttentionError, Window};

    /// Version of the JSON form that is written, and the only one that is read.
    const VERSION: u32 = 3;

    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct StoredProfile {
        // First in the file, so that a profile of another version is refused for that and not for its fields.
        #[serde(deserialize_with = "version")]
        version: u32,
        model: ModelFingerprint,
        kv_heads: usize,
        head_dim: usize,
        window: Window,
        sinks: usize,
        provenance: Option<Provenance>,
        layers: Vec<StoredLayer>,
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct StoredLayer {
        #[serde(flatten)]
        plan: LayerPlan,
        /// `[kv_heads, head_dim]`.
        thresholds: Vec<f32>,
    }

    fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        match u32::deserialize(deserializer)? {
            VERSION => Ok(VERSION),
            got => Err(D::Error::custom(format!(
                "expected a profile of version {VERSION}, got version {got}: make a new one with `calibrate`"
            ))),
        }
    }

    impl TryFrom<StoredProfile> for AttentionProfile {
        type Error = AttentionError;

        fn try_from(stored: StoredProfile) -> Result<Self, AttentionError> {
            let StoredProfile { version: _, model, kv_heads, head_dim, window, sinks, provenance, layers } =
                stored;
            let expected = kv_heads.saturating_mul(head_dim);
            if let Some(layer) = layers.iter().find(|layer| layer.thresholds.len() != expected) {
                let (what, got) = ("thresholds of a layer", layer.thresholds.len());
                return Err(CoreError::ProfileShape { what, expected, got }.into());
            }
            let plans = layers.iter().map(|layer| layer.plan).collect();
            let dimensions = [layers.len(), kv_heads, head_dim];
            let thresholds = layers.into_iter().flat_map(|layer| layer.thresholds).collect();
            let thresholds = ThresholdProfile::new(model, dimensions, thresholds)?;
            Ok(Self { provenance, ..Self::new(Arc::new(thresholds), window, sinks, plans)? })
        }
    }

    impl From<AttentionProfile> for StoredProfile {
        fn from(profile: AttentionProfile) -> Self {
            let AttentionProfile { thresholds, window, sinks, layers, provenance } = profile;
            let [_, kv_heads, head_dim] = thresholds.shape();
            let rows = thresholds.thresholds().chunks(kv_heads * head_dim);
            let layers = layers
                .into_iter()
                .zip(rows)
                .map(|(plan, thresholds)| StoredLayer { plan, thresholds: thresholds.to_vec() })
                .collect();
            let model = thresholds.model();
            Self { version: VERSION, model, kv_heads, head_dim, window, sinks, provenance, layers }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AttentionShape;

    fn profile() -> AttentionProfile {
        let thresholds = (0..8).map(|i| i as f32 / 8.0).collect();
        let thresholds = ThresholdProfile::new(ModelFingerprint(7), [2, 1, 4], thresholds).unwrap();
        let margin = Some(SkipMargin::length(2.5));
        let layers = vec![
            LayerPlan { dense: true, ..LayerPlan::default() },
            LayerPlan {
                exact_prompt: 19,
                skip_margin: margin,
                store: Some(KvStore::Bf16),
                ..LayerPlan::default()
            },
        ];
        AttentionProfile::new(Arc::new(thresholds), Window::Sliding(8), 2, layers).unwrap()
    }

    #[test]
    fn every_layer_gets_its_own_kernel() {
        let options = AttentionOptions::of_tests(AttentionShape::new(2, 1, 4).unwrap());
        let (q, k) = (ndarray::Array3::ones((20, 2, 4)), ndarray::Array3::ones((20, 1, 4)));
        let mut out = ndarray::Array3::zeros((20, 2, 4));
        let stats: Vec<_> = (0..2)
            .map(|layer| {
                let mut kernel = profile().kernel(&options, layer).unwrap();
                kernel.forward(q.view(), k.view(), k.view(), out.view_mut()).unwrap();
                kernel.stats().total()
            })
            .collect();
        assert_eq!(stats[0].elements, 0, "dense");
        assert_eq!(stats[1].elements, 80, "coded");
        assert!(matches!(
            profile().kernel(&options, 2),
            Err(AttentionError::Core(CoreError::ProfileShape { what: "layers", expected: 3, got: 2 }))
        ));
        let other = AttentionOptions::of_tests(AttentionShape::new(2, 1, 8).unwrap());
        assert!(profile().kernel(&other, 1).is_err());
    }

    #[test]
    fn a_dense_layer_of_a_compact_cache_has_8_bits() {
        let options = AttentionOptions::of_tests(AttentionShape::new(2, 1, 4).unwrap());
        let options = AttentionOptions { store: KvStore::Compact, ..options };
        let int8 = AttentionOptions { store: KvStore::Int8, ..options.clone() };
        let dense = profile().kernel(&options, 0).unwrap();
        assert_eq!(dense.growth(100), DenseAttention::new(&int8).unwrap().growth(100));
    }

    #[test]
    fn plans_that_do_not_fit_are_refused() {
        let thresholds = profile().thresholds;
        let new = |window, layers| AttentionProfile::new(thresholds.clone(), window, 0, layers);
        assert!(new(Window::Sliding(8), vec![LayerPlan::default()]).is_err());
        assert!(new(Window::Sliding(0), vec![LayerPlan::default(); 2]).is_err());
        let bad = LayerPlan { skip_margin: Some(SkipMargin::Fixed(-1.0)), ..LayerPlan::default() };
        assert!(new(Window::Sliding(8), vec![bad; 2]).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_reads_back_and_is_checked() {
        let json = serde_json::to_string(&profile()).unwrap();
        assert_eq!(serde_json::from_str::<AttentionProfile>(&json).unwrap(), profile());
        for (from, to, complaint) in [
            ("\"version\":3", "\"version\":2", "version 3, got version 2: make a new one with `calibrate`"),
            ("\"head_dim\":4", "\"head_dim\":3", "thresholds of a layer = 3, got 4"),
            ("0.875", "-0.875", "finite number >= 0, got -0.875"),
            ("0.875", "1e999", "number out of range"),
            ("0.875", "null", "invalid type: null"),
            ("\"sinks\"", "\"basins\"", "unknown field"),
            ("\"dense\"", "\"tense\"", "missing field `dense`"),
            ("0000000000000007", "seven", "16 hexadecimal digits"),
            ("\"ln:2.5\"", "\"ln:x\"", "skip margin: expected a number of nats"),
            ("\"window\":\"8\"", "\"window\":\"0\"", "window: expected a number of keys"),
        ] {
            let json = json.replace(from, to);
            let error = serde_json::from_str::<AttentionProfile>(&json).unwrap_err().to_string();
            assert!(error.contains(complaint), "{from} -> {to}: {error}");
        }
    }
}
