//! Parameters from a `config.json` as `transformers` writes it.

use serde_json::Value;

use super::json_fields::Fields;
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
        let mut fields = Fields::new(json)?;
        let name = fields.string("model_type")?.unwrap_or_default();
        let Some(architecture) = Architecture::from_model_type(name) else {
            return Err(ConfigError::Architecture { expected: "`llama` and `bitnet`", got: name.to_owned() });
        };
        let defaults = Defaults::of(architecture);
        refuse_other_classes(&mut fields, defaults.class)?;
        let activation = architecture.activation().name();
        if let Some(got) = fields.string("hidden_act")?.filter(|&name| name != activation) {
            return Err(ConfigError::Activation { expected: activation, got: got.to_owned() });
        }
        read_quantization(&mut fields, architecture)?;
        let hidden_size = fields.required("hidden_size")?;
        let layers = fields.required("num_hidden_layers")?;
        let heads = fields.required("num_attention_heads")?;
        let kv_heads = fields.integer("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = match fields.integer("head_dim")? {
            Some(size) => size,
            None => default_head_dim(hidden_size, heads)?,
        };
        let intermediate_size = fields.required("intermediate_size")?;
        let vocab_size = fields.required("vocab_size")?;
        let norm_eps = fields.float("rms_norm_eps")?.unwrap_or(defaults.norm_eps);
        let rope = read_rope(&mut fields, defaults.theta)?;
        let context_length = fields.integer("max_position_embeddings")?.unwrap_or(2048);
        // Within a window, attention to the window is attention to everything.
        let context_length = context_length.min(read_window(&mut fields)?.unwrap_or(u64::MAX));
        let tie_embeddings = fields.boolean("tie_word_embeddings")?.unwrap_or(false);
        let attention_bias = fields.boolean("attention_bias")?.unwrap_or(false);
        // The class of BitNet models does not know it.
        let mlp_bias = architecture == Architecture::Llama && fields.boolean("mlp_bias")?.unwrap_or(false);
        if fields.boolean("is_causal")? == Some(false) {
            return Err(fields.unsupported("is_causal", "true, attention to earlier tokens only", false));
        }
        MULTIPLIERS.iter().try_for_each(|name| fields.one(name))?;
        fields.refuse_others()?;
        let config = Self {
            architecture,
            hidden_size: checked_size("hidden size", hidden_size)?,
            layers: checked_size("layers", layers)?,
            heads: checked_size("heads", heads)?,
            kv_heads: checked_size("key-value heads", kv_heads)?,
            head_dim: checked_size("head size", head_dim)?,
            intermediate_size: checked_size("intermediate size", intermediate_size)?,
            vocab_size: checked_size("vocabulary", vocab_size)?,
            norm_eps,
            rope,
            context_length: checked_size("context length", context_length)?,
            tie_embeddings,
            attention_bias,
            attention_output_bias: attention_bias,
            mlp_bias,
        };
        config.validate()?;
        Ok(config)
    }
}

/// What other families multiply with, and this graph does not.
const MULTIPLIERS: &[&str] = &[
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
];

/// What `transformers` has for a family: its class, and what it assumes for absent entries.
struct Defaults {
    class: &'static str,
    norm_eps: f32,
    theta: f32,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Llama => Self { class: "LlamaForCausalLM", norm_eps: 1e-6, theta: 10_000.0 },
            Architecture::BitNet => Self { class: "BitNetForCausalLM", norm_eps: 1e-5, theta: 500_000.0 },
        }
    }
}

/// Refuses a model of another class, such as a classifier, or a BitNet model that says `llama`. Early files spell it in other
/// letters.
fn refuse_other_classes(fields: &mut Fields<'_>, class: &'static str) -> Result<(), ConfigError> {
    let Some(names) = fields.array("architectures")? else { return Ok(()) };
    let is_class = |name: &Value| name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(class));
    if names.is_empty() || names.iter().any(is_class) {
        return Ok(());
    }
    Err(fields.unsupported("architectures", class, Value::from(names)))
}

/// Of BitNet models, what it says must be something that can be loaded; none of it is a parameter of the graph.
fn read_quantization(fields: &mut Fields<'_>, architecture: Architecture) -> Result<(), ConfigError> {
    if architecture.is_ternary() {
        return Quantization::read(fields).map(drop);
    }
    match fields.object(Quantization::FIELD)?.filter(|object| !object.is_empty()) {
        None => Ok(()),
        Some(mut object) => {
            let method = object.string("quant_method")?.unwrap_or("another");
            Err(fields.unsupported(Quantization::FIELD, "none, weights in F32, F16 or BF16", method))
        }
    }
}

/// The tokens that attention reaches back to, if not all.
fn read_window(fields: &mut Fields<'_>) -> Result<Option<u64>, ConfigError> {
    let is_on = fields.boolean("use_sliding_window")? != Some(false);
    let window = fields.integer("sliding_window")?.filter(|&tokens| is_on && tokens > 0);
    let others = |kind: &&Value| match kind.as_str() {
        Some("full_attention") => false,
        Some("sliding_attention") => window.is_none(),
        _ => true,
    };
    match fields.array("layer_types")?.unwrap_or_default().iter().find(others) {
        None => Ok(window),
        Some(got) => Err(fields.unsupported(
            "layer_types",
            "`full_attention`, or `sliding_attention` with a window",
            got,
        )),
    }
}

/// Older files have `rope_theta` beside `rope_scaling`, newer ones `rope_parameters` with both. Of a file that has it all,
/// `transformers` takes `rope_scaling`, and what stands within before what stands beside it.
fn read_rope(fields: &mut Fields<'_>, default_theta: f32) -> Result<RopeConfig, ConfigError> {
    let outer_theta = fields.float("rope_theta")?;
    fields.one("partial_rotary_factor")?;
    let old = fields.object("rope_scaling")?.filter(|object| !object.is_empty());
    let new = fields.object("rope_parameters")?;
    let Some(mut rope) = old.or(new) else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(default_theta), scaling: RopeScaling::None });
    };
    rope.one("partial_rotary_factor")?;
    let theta = rope.float("rope_theta")?.or(outer_theta).unwrap_or(default_theta);
    let scaling = read_scaling(&mut rope)?;
    rope.refuse_others()?;
    Ok(RopeConfig { theta, scaling })
}

fn read_scaling(rope: &mut Fields<'_>) -> Result<RopeScaling, ConfigError> {
    let (kind, old) = (rope.string("rope_type")?, rope.string("type")?);
    if let (Some(kind), Some(old)) = (kind, old)
        && kind != old
    {
        // Which of them counts differs between versions of transformers.
        return Err(rope.unsupported(
            "type",
            "the same as `rope_type`, or nothing",
            format!("`{old}` and `{kind}`"),
        ));
    }
    // Of the kinds that are supported, only llama3 looks at it.
    let original_context = rope.integer("original_max_position_embeddings")?;
    match kind.or(old) {
        None | Some("default") => {
            rope.one("factor")?;
            Ok(RopeScaling::None)
        }
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.required_float("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: rope.required_float("factor")?,
            low_freq_factor: rope.required_float("low_freq_factor")?,
            high_freq_factor: rope.required_float("high_freq_factor")?,
            original_context: checked_size(
                "RoPE original context",
                original_context.ok_or_else(|| ConfigError::Missing {
                    key: "original_max_position_embeddings".to_owned(),
                })?,
            )?,
        }),
        Some(got) => Err(ConfigError::RopeScaling { got: got.to_owned() }),
    }
}
