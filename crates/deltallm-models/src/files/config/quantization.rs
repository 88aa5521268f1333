//! How a directory of safetensors files holds the ternary weights of a BitNet model: `quantization_config` of its
//! `config.json`, as `transformers` reads it (`BitNetQuantConfig`).

use serde_json::Value;

use super::ConfigError;
use super::json_fields::{Object, boolean, string, wrong_type};

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

const CONFIG: &str = "quantization_config";

impl Quantization {
    /// Reads a parsed `config.json`. Without `quantization_config`, `transformers` would run the model unquantised,
    /// which no BitNet model is made for, so it must be there.
    ///
    /// # Errors
    /// [`ConfigError`], naming the parameter.
    pub(crate) fn from_value(json: &Value) -> Result<Self, ConfigError> {
        let value = json.get(CONFIG).filter(|value| !value.is_null());
        let value = value.ok_or_else(|| ConfigError::Missing { key: CONFIG.into() })?;
        let object = value.as_object().ok_or_else(|| wrong_type(CONFIG, "an object", value))?;
        let unsupported = |key: &str, expected, got: &str| {
            Err(ConfigError::Unsupported { key: format!("{CONFIG}.{key}"), expected, got: got.into() })
        };
        match string(object, "quant_method")? {
            None | Some("bitnet") => {}
            Some(got) => return unsupported("quant_method", "`bitnet`", got),
        }
        if boolean(object, "use_rms_norm")? {
            return unsupported("use_rms_norm", "false, no further norms in the projections", "true");
        }
        if let Some(got) = other_exceptions(object) {
            return unsupported("modules_to_not_convert", "only `lm_head`", &got);
        }
        let mode = string(object, "quantization_mode")?.unwrap_or("offline");
        match (string(object, "linear_class")?.unwrap_or("bitlinear"), mode) {
            ("autobitlinear", "online") => Ok(Self::Online),
            // There transformers multiplies the biases too, which no converter can have meant.
            ("autobitlinear", "offline") if json["attention_bias"] == true => Err(ConfigError::Unsupported {
                key: "attention_bias".into(),
                expected: "false with packed weights of `autobitlinear`",
                got: "true".into(),
            }),
            ("autobitlinear", "offline") => Ok(Self::PackedTimesScale),
            ("bitlinear", "online" | "offline") => Ok(Self::PackedOverScale),
            ("autobitlinear" | "bitlinear", got) => {
                unsupported("quantization_mode", "`online` or `offline`", got)
            }
            (got, _) => unsupported("linear_class", "`autobitlinear` or `bitlinear`", got),
        }
    }
}

/// What is to stay unquantised besides the head, which always does.
fn other_exceptions(object: &Object) -> Option<String> {
    let modules = object.get("modules_to_not_convert").filter(|value| !value.is_null())?;
    let only_head = (modules.as_array())
        .is_some_and(|names| !names.is_empty() && names.iter().all(|name| name == "lm_head"));
    (!only_head).then(|| modules.to_string())
}
