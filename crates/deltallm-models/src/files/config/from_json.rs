//! Parameters from a `config.json` as `transformers` writes it.

use serde_json::{Map, Value};

use super::{
    Architecture, ConfigError, ModelConfig, Quantization, RopeConfig, RopeScaling, checked_size,
    default_head_dim,
};

pub(super) type Object = Map<String, Value>;

impl ModelConfig {
    /// Reads the parameters from a parsed `config.json`. Absent entries take the defaults of `LlamaConfig` or `BitNetConfig` of
    /// `transformers`, except for sizes, which must be there.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub fn from_json(json: &Value) -> Result<Self, ConfigError> {
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
            Quantization::from_json(json)?;
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

/// The entry, unless it is absent or null, which `transformers` takes for absent.
fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn typed<'a, T>(
    object: &'a Object,
    key: &str,
    expected: &'static str,
    cast: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    present(object, key).map(|value| cast(value).ok_or_else(|| wrong_type(key, expected, value))).transpose()
}

pub(super) fn string<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>, ConfigError> {
    typed(object, key, "a string", Value::as_str)
}

fn integer(object: &Object, key: &str) -> Result<Option<u64>, ConfigError> {
    typed(object, key, "a non-negative integer", Value::as_u64)
}

fn float(object: &Object, key: &str) -> Result<Option<f32>, ConfigError> {
    typed(object, key, "a number", |value| value.as_f64().map(|x| x as f32))
}

/// False where absent.
pub(super) fn boolean(object: &Object, key: &str) -> Result<bool, ConfigError> {
    Ok(typed(object, key, "true or false", Value::as_bool)?.unwrap_or(false))
}

fn required(object: &Object, key: &str) -> Result<u64, ConfigError> {
    integer(object, key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
}

fn required_float(object: &Object, key: &str) -> Result<f32, ConfigError> {
    float(object, key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
}

pub(super) fn wrong_type(key: &str, expected: &'static str, got: &Value) -> ConfigError {
    let kind = match got {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) => "a string".to_owned(),
        scalar => scalar.to_string(),
    };
    ConfigError::WrongType { key: key.to_owned(), expected, got: kind }
}
