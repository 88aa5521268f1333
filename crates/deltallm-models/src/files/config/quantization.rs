//! How a directory of safetensors files holds the ternary weights of a BitNet model: `quantization_config` of its
//! `config.json`, as `transformers` reads it (`BitNetQuantConfig`).

use serde_json::Value;

use super::ConfigError;
use super::json_fields::Fields;

/// The form of the ternary weights in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// Float weights of training, made ternary by whoever loads them (`autobitlinear`, `online`).
    Online,
    /// Packed weights; a weight is its code times `weight_scale` (`autobitlinear`, `offline`).
    PackedTimesScale,
    /// Packed weights; a weight is its code over `weight_scale` (`bitlinear`).
    PackedOverScale,
}

impl Quantization {
    /// The field of `config.json` that holds it.
    pub(crate) const FIELD: &str = "quantization_config";

    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub(crate) fn from_value(json: &Value) -> Result<Self, ConfigError> {
        Self::read(&mut Fields::new(json)?)
    }

    /// Reads the fields of a `config.json`. Without `quantization_config`, `transformers` would run the model unquantised,
    /// which no BitNet model is made for, so it must be there.
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, ConfigError> {
        let object = fields.object(Self::FIELD)?;
        let mut object = object.ok_or_else(|| ConfigError::Missing { key: Self::FIELD.into() })?;
        if let Some(got) = object.string("quant_method")?.filter(|&method| method != "bitnet") {
            return Err(object.unsupported("quant_method", "`bitnet`", got));
        }
        if object.boolean("use_rms_norm")? == Some(true) {
            return Err(object.unsupported(
                "use_rms_norm",
                "false, no further norms in the projections",
                true,
            ));
        }
        // For those norms.
        object.float("rms_norm_eps")?;
        if let Some(got) = object.present("modules_to_not_convert").filter(|names| !is_only_head(names)) {
            return Err(object.unsupported("modules_to_not_convert", "only `lm_head`", got));
        }
        let mode = object.string("quantization_mode")?.unwrap_or("offline");
        let class = object.string("linear_class")?.unwrap_or("bitlinear");
        object.refuse_others()?;
        match (class, mode) {
            ("autobitlinear", "online") => Ok(Self::Online),
            // There transformers multiplies the biases too, which no converter can have meant.
            ("autobitlinear", "offline") if fields.boolean("attention_bias")? == Some(true) => Err(
                fields.unsupported("attention_bias", "false with packed weights of `autobitlinear`", true)
            ),
            ("autobitlinear", "offline") => Ok(Self::PackedTimesScale),
            ("bitlinear", "online" | "offline") => Ok(Self::PackedOverScale),
            ("autobitlinear" | "bitlinear", got) => {
                Err(object.unsupported("quantization_mode", "`online` or `offline`", got))
            }
            (got, _) => Err(object.unsupported("linear_class", "`autobitlinear` or `bitlinear`", got)),
        }
    }
}

/// Whether it lists the head, which always stays unquantised, and nothing else.
fn is_only_head(modules: &Value) -> bool {
    (modules.as_array()).is_some_and(|names| !names.is_empty() && names.iter().all(|name| name == "lm_head"))
}
