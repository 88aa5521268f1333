//! Parameters from a `config.json` as `transformers` writes it.

use serde_json::Value;

use super::json_defaults::Defaults;
use super::json_fields::Fields;
use super::json_layers::{read_unrotated, read_windows};
use super::json_rope::read_rope;
use super::sizes::{checked_head_size, checked_layers, checked_size, default_head_dim};
use super::{Architecture, ConfigError, ModelConfig, Quantization};
use crate::files::json;
use crate::files::sees_images::text_part;

impl ModelConfig {
    /// Reads the parameters from the text of a `config.json`. Absent entries take the defaults of the family's class in
    /// `transformers` (`LlamaConfig`, `Qwen2Config`, ...), except for sizes, which must be there.
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
        if let Some(architecture) = text_part(json) {
            return Self::read_text_part(fields, architecture);
        }
        match Architecture::from_model_type(name) {
            Some(architecture) => Self::read(fields, architecture),
            None => {
                Err(ConfigError::Architecture { expected: Architecture::MODEL_TYPES, got: name.to_owned() })
            }
        }
    }

    /// Of a model that sees images too.
    fn read_text_part(mut fields: Fields<'_>, architecture: Architecture) -> Result<Self, ConfigError> {
        refuse_other_classes(&mut fields, "Gemma3ForConditionalGeneration")?;
        read_quantization(&mut fields, architecture)?;
        let tie_embeddings = fields.boolean("tie_word_embeddings")?.unwrap_or(true);
        for name in OF_IMAGES {
            fields.present(name);
        }
        let text = fields.object("text_config")?;
        let mut text = text.ok_or_else(|| ConfigError::Missing { key: "text_config".to_owned() })?;
        fields.refuse_others()?;
        if let Some(got) = text.string("model_type")?.filter(|&got| got != architecture.name()) {
            return Err(text.unsupported("model_type", "`gemma3_text`", got));
        }
        text.boolean("tie_word_embeddings")?;
        Ok(Self { tie_embeddings, ..Self::read(text, architecture)? })
    }

    fn read(mut fields: Fields<'_>, architecture: Architecture) -> Result<Self, ConfigError> {
        let defaults = Defaults::of(architecture);
        refuse_other_classes(&mut fields, defaults.class)?;
        read_activation(&mut fields, architecture)?;
        read_quantization(&mut fields, architecture)?;
        let hidden_size = fields.required("hidden_size")?;
        let layers = fields.required("num_hidden_layers")?;
        let heads = fields.required_or("num_attention_heads", defaults.heads)?;
        // Null is as many as there are heads in every family.
        let default_kv_heads = defaults.kv_heads.filter(|_| !fields.has("num_key_value_heads"));
        let kv_heads = fields.integer("num_key_value_heads")?.or(default_kv_heads).unwrap_or(heads);
        let head_dim = match fields.integer("head_dim")?.or(defaults.head_dim) {
            Some(size) => size,
            None => default_head_dim(hidden_size, heads)?,
        };
        let intermediate_size = fields.required("intermediate_size")?;
        let vocab_size = fields.required_or("vocab_size", defaults.vocab_size)?;
        let norm_eps = fields.float("rms_norm_eps")?.unwrap_or(defaults.norm_eps);
        let context_length = fields.integer("max_position_embeddings")?.unwrap_or(defaults.context_length);
        let (rope, local_rope) = read_rope(&mut fields, architecture, context_length)?;
        let unrotated_layers = read_unrotated(&mut fields, architecture, layers)?;
        let (window, local_layers) = read_windows(&mut fields, architecture, layers, &unrotated_layers)?;
        // Of a family without windows, a file that has one may mean it or not; within the window it makes no difference.
        let limit = window.filter(|_| !architecture.has_windows()).unwrap_or(u64::MAX);
        let context_length = rope.scaling.reach(context_length).min(limit);
        let tie_embeddings = fields.boolean("tie_word_embeddings")?.unwrap_or(defaults.tie_embeddings);
        let Biases { attention_bias, attention_output_bias, mlp_bias } =
            Biases::read(&mut fields, architecture)?;
        let (score_scale, logit_softcap) = read_gemma(&mut fields, architecture, head_dim)?;
        if fields.boolean("is_causal")? == Some(false) {
            return Err(fields.unsupported("is_causal", "true, attention to earlier tokens only", false));
        }
        MULTIPLIERS.iter().try_for_each(|name| fields.one(name))?;
        fields.refuse_others()?;
        let config = Self {
            architecture,
            hidden_size: checked_size("hidden size", hidden_size)?,
            layers: checked_layers(layers)?,
            heads: checked_size("heads", heads)?,
            kv_heads: checked_size("key-value heads", kv_heads)?,
            head_dim: checked_head_size(head_dim)?,
            intermediate_size: checked_size("intermediate size", intermediate_size)?,
            vocab_size: checked_size("vocabulary", vocab_size)?,
            norm_eps,
            rope,
            local_rope,
            unrotated_layers,
            sliding_window: None,
            local_layers,
            score_scale,
            logit_softcap,
            context_length: checked_size("context length", context_length)?,
            tie_embeddings,
            attention_bias,
            attention_output_bias,
            mlp_bias,
        };
        let config = config.with_window(window);
        config.validate()?;
        Ok(config)
    }
}

/// What only images go through.
const OF_IMAGES: &[&str] =
    &["vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"];

/// What other families multiply with, and this graph does not.
const MULTIPLIERS: &[&str] = &[
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
];

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

/// Of the two names that the activation has, both must name the family's.
fn read_activation(fields: &mut Fields<'_>, architecture: Architecture) -> Result<(), ConfigError> {
    let expected = architecture.activation().name();
    for name in ["hidden_act", "hidden_activation"] {
        if let Some(got) = fields.string(name)?.filter(|&name| name != expected) {
            return Err(ConfigError::Activation { expected, got: got.to_owned() });
        }
    }
    Ok(())
}

/// Which projections may have biases.
struct Biases {
    attention_bias: bool,
    attention_output_bias: bool,
    mlp_bias: bool,
}

impl Biases {
    fn read(fields: &mut Fields<'_>, architecture: Architecture) -> Result<Self, ConfigError> {
        let mut none = Self { attention_bias: false, attention_output_bias: false, mlp_bias: false };
        match architecture {
            // The class has no choice.
            Architecture::Mistral => return Ok(none),
            Architecture::Qwen2 => {
                fields.boolean("attention_bias")?;
                return Ok(Self { attention_bias: true, ..none });
            }
            Architecture::Llama | Architecture::SmolLM3 => {
                none.mlp_bias = fields.boolean("mlp_bias")?.unwrap_or(false);
            }
            Architecture::BitNet => {
                // The class does not know it.
                fields.boolean("mlp_bias")?;
            }
            Architecture::Qwen3 | Architecture::Gemma3 => {}
        }
        let attention = fields.boolean("attention_bias")?.unwrap_or(false);
        Ok(Self { attention_bias: attention, attention_output_bias: attention, ..none })
    }
}

/// What only Gemma models have: the scale of scores, and the cap of logits.
fn read_gemma(
    fields: &mut Fields<'_>,
    architecture: Architecture,
    head_dim: u64,
) -> Result<(Option<f32>, Option<f32>), ConfigError> {
    if architecture != Architecture::Gemma3 {
        return Ok((None, None));
    }
    let scalar = fields.float("query_pre_attn_scalar")?.unwrap_or(256.0);
    let scale = (scalar != head_dim as f32).then(|| 1.0 / scalar.sqrt());
    Ok((scale, fields.float("final_logit_softcapping")?))
}
