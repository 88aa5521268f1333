//! The JSON text that a kernel is made from; the fields are described in the crate's documentation.

use std::sync::Arc;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionProfile, AttentionShape, DeltaAttention,
    DenseAttention, HybridAttention, HybridConfig, Isa, IsaError, KvStore, MemoryBudget, ThresholdPolicy,
};
use deltallm_core::{CoreError, ModelFingerprint, TargetSparsity, ThresholdProfile};
use serde::Deserialize;

/// Heads of a layer at most, and channels of a head: far more than any model has, and little enough that the tables a
/// kernel starts with cannot exhaust the memory.
const MOST: usize = 4096;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("expected a JSON object, in braces, got {got:?}")]
    NoObject { got: String },
    #[error(transparent)]
    Json(#[from] serde_path_to_error::Error<serde_json::Error>),
    #[error(transparent)]
    AfterTheObject(serde_json::Error),
    #[error("{field}: expected 1 to {MOST}, got {got}")]
    Size { field: &'static str, got: usize },
    #[error("{field}: expected none beside a profile, which has its own, got one")]
    BesideProfile { field: &'static str },
    #[error("layer: expected the profile's layer that this kernel is, got none")]
    NoLayer,
    #[error("layer: expected less than {layers}, the layers of the profile, got {got}")]
    Layer { layers: usize, got: usize },
    #[error("simd: {0}")]
    Simd(IsaError),
    #[error(transparent)]
    Environment(IsaError),
    #[error(transparent)]
    Attention(#[from] AttentionError),
}

impl From<CoreError> for ConfigError {
    fn from(error: CoreError) -> Self {
        Self::Attention(error.into())
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelConfig {
    kernel: KernelKind,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    #[serde(default)]
    store: KvStore,
    scale: Option<f32>,
    softcap: Option<f32>,
    precision: Option<String>,
    simd: Option<String>,
    parallel: Option<bool>,
    budget_bytes: Option<usize>,
    thresholds: Option<Thresholds>,
    window: Option<Text>,
    sinks: Option<usize>,
    skip_margin: Option<Text>,
    exact_prompt: Option<usize>,
    profile: Option<AttentionProfile>,
    layer: Option<usize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KernelKind {
    Dense,
    Delta,
    Hybrid,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Thresholds {
    Theta(f32),
    TargetSparsity(f32),
    Channels(Vec<f32>),
}

/// A setting with a form of its own, such as `64` or `"block:0.05"`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number or a text")]
enum Text {
    Number(serde_json::Number),
    Text(String),
}

impl Text {
    fn parse<T: std::str::FromStr<Err = AttentionError>>(&self) -> Result<T, AttentionError> {
        match self {
            Self::Number(number) => number.to_string().parse(),
            Self::Text(text) => text.parse(),
        }
    }
}

impl KernelConfig {
    pub(crate) fn from_json(text: &str) -> Result<Self, ConfigError> {
        // An array would be taken for the fields in their order.
        if !text.trim_start().starts_with('{') {
            return Err(ConfigError::NoObject { got: text.chars().take(20).collect() });
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let config = serde_path_to_error::deserialize(&mut json)?;
        json.end().map_err(ConfigError::AfterTheObject)?;
        Ok(config)
    }

    pub(crate) fn shape(&self) -> Result<AttentionShape, ConfigError> {
        let sizes = [("heads", self.heads), ("kv_heads", self.kv_heads), ("head_dim", self.head_dim)];
        if let Some((field, got)) = sizes.into_iter().find(|(_, size)| !(1..=MOST).contains(size)) {
            return Err(ConfigError::Size { field, got });
        }
        Ok(AttentionShape::new(self.heads, self.kv_heads, self.head_dim)?)
    }

    /// The kernel, with an empty cache.
    pub(crate) fn kernel(&self) -> Result<Box<dyn AttentionKernel>, ConfigError> {
        let options = self.options()?;
        let config = self.hybrid()?;
        Ok(match (self.kernel, &self.profile) {
            (KernelKind::Dense, _) => Box::new(DenseAttention::new(&options)?),
            (KernelKind::Delta, _) => {
                Box::new(DeltaAttention::new(&options, config.thresholds, config.layer)?)
            }
            (KernelKind::Hybrid, Some(profile)) => profile.kernel(&options, config.layer)?,
            (KernelKind::Hybrid, None) => Box::new(HybridAttention::new(&options, &config)?),
        })
    }

    fn options(&self) -> Result<AttentionOptions, ConfigError> {
        let usual = AttentionOptions::new(self.shape()?);
        Ok(AttentionOptions {
            scale: self.scale.unwrap_or(usual.scale),
            softcap: self.softcap,
            store: self.store,
            budget: self.budget_bytes.map_or(usual.budget, MemoryBudget::new),
            isa: self.isa()?,
            precision: self.precision.as_ref().map_or(Ok(usual.precision), |name| name.parse())?,
            parallel: self.parallel.unwrap_or(usual.parallel),
            ..usual
        })
    }

    fn isa(&self) -> Result<Isa, ConfigError> {
        match &self.simd {
            Some(name) => name.parse().map_err(ConfigError::Simd),
            None => Isa::from_env().map_err(ConfigError::Environment),
        }
    }

    /// The settings of delta and hybrid attention; of a profile only the thresholds, because the rest is its layer's.
    fn hybrid(&self) -> Result<HybridConfig, ConfigError> {
        let usual = HybridConfig::default();
        if let Some(profile) = &self.profile {
            let layer = self.profile_layer(profile)?;
            let thresholds = ThresholdPolicy::Profile(Arc::clone(profile.thresholds()));
            return Ok(HybridConfig { thresholds, layer, ..usual });
        }
        Ok(HybridConfig {
            thresholds: self.thresholds.as_ref().map_or(Ok(usual.thresholds), |t| self.policy(t))?,
            window: self.window.as_ref().map_or(Ok(usual.window), Text::parse)?,
            sinks: self.sinks.unwrap_or(usual.sinks),
            skip_margin: self.skip_margin.as_ref().map(Text::parse).transpose()?,
            exact_prompt: self.exact_prompt.unwrap_or(usual.exact_prompt),
            layer: 0,
        })
    }

    fn profile_layer(&self, profile: &AttentionProfile) -> Result<usize, ConfigError> {
        let own = [
            ("thresholds", self.thresholds.is_some()),
            ("window", self.window.is_some()),
            ("sinks", self.sinks.is_some()),
            ("skip_margin", self.skip_margin.is_some()),
            ("exact_prompt", self.exact_prompt.is_some()),
        ];
        if let Some((field, _)) = own.into_iter().find(|(_, given)| *given) {
            return Err(ConfigError::BesideProfile { field });
        }
        let (layers, got) = (profile.layers().len(), self.layer.ok_or(ConfigError::NoLayer)?);
        if got < layers { Ok(got) } else { Err(ConfigError::Layer { layers, got }) }
    }

    fn policy(&self, thresholds: &Thresholds) -> Result<ThresholdPolicy, ConfigError> {
        let one_layer = [1, self.kv_heads, self.head_dim];
        Ok(match thresholds {
            Thresholds::Theta(theta) => ThresholdPolicy::Uniform(*theta),
            Thresholds::TargetSparsity(share) => ThresholdPolicy::TargetSparsity(TargetSparsity::new(*share)),
            Thresholds::Channels(thetas) => {
                // The fingerprint is not looked at: these thresholds come from the caller and not from a file.
                let profile = ThresholdProfile::new(ModelFingerprint(0), one_layer, thetas.clone())?;
                ThresholdPolicy::Profile(Arc::new(profile))
            }
        })
    }
}
