//! Parameters from a `config.json` as `transformers` writes it.

use serde_json::Value;

use super::json_fields::{
    Object, boolean, float, integer, present, required, required_float, string, wrong_type,
};
use super::sizes::{checked_size, default_head_dim};
use super::{Architecture, ConfigError, ModelConfig, Quantization, RopeConfig, RopeScaling};
use crate::files::json;

impl ModelConfig {
    /// Reads the parameters from the text of a `config.json`. Absent entries take the defaults of `LlamaConfig` or `BitNetConfig`
    /// of `transformers`, except for sizes, which must be there.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let value = json::from_slice(text.as_bytes());
        Self::from_value(&value.map_err(|error| ConfigError::Json { detail: error.to_string() })?)
    }

    /// The same from parsed JSON.
    pub(crate) fn from_value(json: &Value) -> Result<Self, ConfigError> {
        let object = json.as_object().ok_or_else(|| wrong_type("config.json", "an object", json))?;
        let name = string(object, "model_type")?.unwrap_or_default();
        let Some(architecture) = Architecture::from_model_type(name) else {
            return Err(ConfigError::Architecture { expected: "`llama` and `bitnet`", got: name.to_owned() });
        };
        let defaults = Defaults::of(architecture);
        let activation = architecture.activation().name();
        if let Some(got) = string(object, "hidden_act")?.filter(|&name| name != activation) {
            return Err(ConfigError::Activation { expected: activation, got: got.to_owned() });
        }
        if architecture.is_ternary() {
            // Nothing of it is a parameter of the graph, but what it says must be something that can be loaded.
            Quantization::from_value(json)?;
        }
        let hidden_size = required(object, "hidden_size")?;
        let heads = required(object, "num_attention_heads")?;
        let head_dim = match integer(object, "head_dim")? {
            Some(size) => size,
            None => default_head_dim(hidden_size, heads)?,
        };
        let attention_bias = boolean(object, "attention_bias")?;
        let config = Self {
            architecture,
            hidden_size: checked_size("hidden size", hidden_size)?,
            layers: checked_size("layers", required(object, "num_hidden_layers")?)?,
            heads: checked_size("heads", heads)?,
            kv_heads: checked_size(
                "key-value heads",
                integer(object, "num_key_value_heads")?.unwrap_or(heads),
            )?,
            head_dim: checked_size("head size", head_dim)?,
            intermediate_size: checked_size("intermediate size", required(object, "intermediate_size")?)?,
            vocab_size: checked_size("vocabulary", required(object, "vocab_size")?)?,
            norm_eps: float(object, "rms_norm_eps")?.unwrap_or(defaults.norm_eps),
            rope: read_rope(object, defaults.theta)?,
            context_length: checked_size(
                "context length",
                integer(object, "max_position_embeddings")?.unwrap_or(2048),
            )?,
            tie_embeddings: boolean(object, "tie_word_embeddings")?,
            attention_bias,
            attention_output_bias: attention_bias,
            mlp_bias: architecture == Architecture::Llama && boolean(object, "mlp_bias")?,
        };
        config.validate()?;
        Ok(config)
    }
}

/// What `transformers` assumes for absent entries.
struct Defaults {
    norm_eps: f32,
    theta: f32,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Llama => Self { norm_eps: 1e-6, theta: 10_000.0 },
            Architecture::BitNet => Self { norm_eps: 1e-5, theta: 500_000.0 },
        }
    }
}

/// Older files have `rope_theta` beside `rope_scaling`, newer ones `rope_parameters` with both.
fn read_rope(object: &Object, default_theta: f32) -> Result<RopeConfig, ConfigError> {
    let nested = match present(object, "rope_parameters") {
        Some(value) => Some(("rope_parameters", value)),
        None => present(object, "rope_scaling").map(|value| ("rope_scaling", value)),
    };
    let empty = Object::new();
    let scaling = match nested {
        Some((key, value)) => value.as_object().ok_or_else(|| wrong_type(key, "an object", value))?,
        None => &empty,
    };
    for place in [object, scaling] {
        if let Some(got) = float(place, "partial_rotary_factor")?.filter(|&factor| factor != 1.0) {
            return Err(ConfigError::Unsupported {
                key: "partial_rotary_factor".into(),
                expected: "1, rotation of all channels",
                got: got.to_string(),
            });
        }
    }
    let theta = match float(scaling, "rope_theta")? {
        Some(theta) => theta,
        None => float(object, "rope_theta")?.unwrap_or(default_theta),
    };
    Ok(RopeConfig { theta, scaling: read_scaling(scaling)? })
}

fn read_scaling(object: &Object) -> Result<RopeScaling, ConfigError> {
    let kind = match string(object, "rope_type")? {
        Some(kind) => Some(kind),
        None => string(object, "type")?,
    };
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: required_float(object, "factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: required_float(object, "factor")?,
            low_freq_factor: required_float(object, "low_freq_factor")?,
            high_freq_factor: required_float(object, "high_freq_factor")?,
            original_context: checked_size(
                "RoPE original context",
                required(object, "original_max_position_embeddings")?,
            )?,
        }),
        Some(got) => Err(ConfigError::RopeScaling { got: got.to_owned() }),
    }
}
