//! The JSON text that a kernel is made from; the fields are described in the crate's documentation.

use std::sync::Arc;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionProfile, AttentionShape, ExactWindow, Isa, IsaError,
    KernelContext, KernelKind, KernelSpec, KvStore, Mask, MemoryBudget, Precision, SkipMargin, SpecError,
    SpecOverrides, ThresholdPolicy,
};
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
    Spec(#[from] SpecError),
    #[error(transparent)]
    Attention(#[from] AttentionError),
}

/// The fields of a [`KernelSpec`], each of which may be missing, and those that only C has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KernelConfig {
    kernel: KernelKind,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    value_dim: Option<usize>,
    mask: Option<Mask>,
    sink_logits: Option<Vec<f32>>,
    log_sum_exp: Option<bool>,
    exact_rewind: Option<usize>,
    store: Option<KvStore>,
    scale: Option<f32>,
    softcap: Option<f32>,
    precision: Option<Precision>,
    simd: Option<String>,
    parallel: Option<bool>,
    budget_bytes: Option<usize>,
    thresholds: Option<ThresholdPolicy>,
    window: Option<ExactWindow>,
    sinks: Option<usize>,
    skip_margin: Option<SkipMargin>,
    exact_prompt: Option<usize>,
    profile: Option<AttentionProfile>,
    layer: Option<usize>,
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
        let value_dim = self.value_dim.unwrap_or(self.head_dim);
        let sizes = [
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("value_dim", value_dim),
        ];
        if let Some((field, got)) = sizes.into_iter().find(|(_, size)| !(1..=MOST).contains(size)) {
            return Err(ConfigError::Size { field, got });
        }
        Ok(AttentionShape::new(self.heads, self.kv_heads, self.head_dim)?.with_value_dim(value_dim)?)
    }

    /// The kernel, with an empty cache.
    pub(crate) fn kernel(&self) -> Result<Box<dyn AttentionKernel>, ConfigError> {
        // One layer is made, and whoever makes it has said which kernel it gets.
        let usual = KernelSpec::default().store(KvStore::F32).dense_up_to(0);
        let (spec, layer, layers) = match &self.profile {
            Some(profile) => (profile.spec().clone(), self.profile_layer(profile)?, layers(profile)),
            None => (usual.clone(), 0, 1),
        };
        // Dense attention has no use for a profile, and keeps its keys and values as the configuration says.
        let spec = if self.kernel == KernelKind::Dense { usual } else { spec };
        let spec = spec.with(&self.given());
        let context = self.context(layer)?;
        spec.validate(context.shape, layers)?;
        Ok(spec.build(layer, &context)?)
    }

    /// What the kernel of layer `layer` is made in: it has its own mask and logits wherever in the model it stands.
    fn context(&self, layer: usize) -> Result<KernelContext, ConfigError> {
        let usual = KernelContext::new(self.shape()?).log_sum_exp(self.log_sum_exp.unwrap_or(false));
        let usual = usual.exact_rewind(self.exact_rewind.unwrap_or(0));
        let usual = usual.masks(vec![self.mask.unwrap_or_default(); layer + 1]);
        let usual = match &self.sink_logits {
            Some(logits) => usual.sink_logits(vec![Arc::from(&logits[..]); layer + 1]),
            None => usual,
        };
        let isa = match &self.simd {
            Some(name) => name.parse().map_err(ConfigError::Simd)?,
            None => Isa::from_env().map_err(ConfigError::Environment)?,
        };
        let budget = self.budget_bytes.map_or_else(MemoryBudget::unlimited, MemoryBudget::new);
        let parallel = self.parallel.unwrap_or(usual.parallel);
        Ok(usual.isa(isa).budget(budget).parallel(parallel))
    }

    fn given(&self) -> SpecOverrides {
        SpecOverrides::default()
            .kernel(self.kernel)
            .store(self.store)
            .precision(self.precision)
            .scale(self.scale)
            .softcap(self.softcap)
            .thresholds(self.thresholds.clone())
            .exact_window(self.window)
            .exact_sinks(self.sinks)
            .skip_margin(self.skip_margin.map(Some))
            .exact_prompt(self.exact_prompt)
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
        let (layers, got) = (layers(profile), self.layer.ok_or(ConfigError::NoLayer)?);
        if got < layers { Ok(got) } else { Err(ConfigError::Layer { layers, got }) }
    }
}

fn layers(profile: &AttentionProfile) -> usize {
    let [layers, ..] = profile.thresholds().shape();
    layers
}
