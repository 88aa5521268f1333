//! Models that see images too: of their files, the part that reads text is a model of its own.

use serde_json::Value;

use crate::Architecture;

/// The family of the part that reads text, if a `config.json` is that of a model with such a part.
pub(crate) fn text_part(config: &Value) -> Option<Architecture> {
    (config["model_type"] == "gemma3").then_some(Architecture::Gemma3)
}

/// What a tensor of such a model belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// To the part that reads text, under this name if it stood alone.
    Text(String),
    /// To the part that sees images, which text does not go through.
    Images,
    Nothing,
}

/// What begins the names of tensors that images go through. Newer files put `model.` in front.
const OF_IMAGES: [&str; 2] = ["vision_tower.", "multi_modal_projector."];

/// What the tensor of that name belongs to.
pub(crate) fn belongs(name: &str) -> Belongs {
    let rest = name.strip_prefix("model.");
    if OF_IMAGES.iter().any(|part| rest.unwrap_or(name).starts_with(part)) {
        return Belongs::Images;
    }
    match (name.strip_prefix("language_model."), rest.and_then(|rest| rest.strip_prefix("language_model."))) {
        (Some(alone), _) => Belongs::Text(alone.to_owned()),
        (_, Some(rest)) => Belongs::Text(format!("model.{rest}")),
        _ if name == "lm_head.weight" => Belongs::Text(name.to_owned()),
        _ => Belongs::Nothing,
    }
}

/// The names that the tensor `alone`, as it would be called if the part stood alone, has in older and in newer files.
pub(crate) fn names(alone: &str) -> [String; 2] {
    let newer = alone.strip_prefix("model.").map(|rest| format!("model.language_model.{rest}"));
    [format!("language_model.{alone}"), newer.unwrap_or_else(|| alone.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_the_tensors_of_the_part_alone() {
        for alone in ["model.embed_tokens.weight", "model.layers.3.mlp.up_proj.weight", "lm_head.weight"] {
            for name in names(alone) {
                assert_eq!(belongs(&name), Belongs::Text(alone.to_owned()), "{name}");
            }
        }
        for name in ["vision_tower.x.weight", "model.vision_tower.x.weight", "multi_modal_projector.y"] {
            assert_eq!(belongs(name), Belongs::Images, "{name}");
        }
        for name in ["model.layers.3.mlp.up_proj.weight", "audio_tower.x", "model.norm.weight"] {
            assert_eq!(belongs(name), Belongs::Nothing, "{name}");
        }
    }
}
