//! Calibrated settings of a model: from a file, or those that come with the programs.

use std::path::Path;

use anyhow::Context;
use deltallm::AttentionProfile;
use deltallm::models::{Model, ModelConfig};
use half::bf16;
use ndarray::Array1;

use crate::{input::read_bytes, sha256_hex};

/// The profiles of `assets/profiles`; `docs/results/calibration.md` says how they were made and what they cost.
const BUILT_IN: [BuiltIn; 6] = [
    BuiltIn {
        name: "bitnet-tiny (built in)",
        json: include_str!("../../assets/profiles/bitnet-tiny.json"),
        norm: "36b8d8cc03f371f5",
    },
    BuiltIn {
        name: "fairy-tales (built in)",
        json: include_str!("../../assets/profiles/fairy-tales.json"),
        norm: "7d841fe6723f1202",
    },
    BuiltIn {
        name: "gemma-3-270m (built in)",
        json: include_str!("../../assets/profiles/gemma-3-270m.json"),
        norm: "05c4f9f17c35ba7f",
    },
    BuiltIn {
        name: "smollm2-135m (built in)",
        json: include_str!("../../assets/profiles/smollm2-135m.json"),
        norm: "9ab0dc5d065cbff6",
    },
    BuiltIn {
        name: "qwen2.5-coder-0.5b-instruct (built in)",
        json: include_str!("../../assets/profiles/qwen2.5-coder-0.5b-instruct.json"),
        norm: "06bf8db74242f3d2",
    },
    BuiltIn {
        name: "qwen2.5-coder-1.5b-instruct (built in)",
        json: include_str!("../../assets/profiles/qwen2.5-coder-1.5b-instruct.json"),
        norm: "7b760556f3b648bf",
    },
];

/// A profile that comes with the programs.
struct BuiltIn {
    name: &'static str,
    json: &'static str,
    /// Which of the models of this shape it is for: the digest of its first norm.
    norm: &'static str,
}

/// What tells models of one shape apart, such as one that was trained further: the first 16 digits of the SHA-256 of the norm before
/// the first layer's attention, rounded to bf16. Files of all types of weights have the same one.
fn norm_digest(first_norm: &Array1<f32>) -> String {
    let bytes: Vec<u8> = first_norm.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
    sha256_hex(&bytes)[..16].to_owned()
}

/// A profile that has been checked against its model.
#[derive(Debug, Clone)]
pub struct ModelProfile {
    /// Name of the file, or of the built-in profile.
    pub name: String,
    /// The settings.
    pub settings: AttentionProfile,
}

impl ModelProfile {
    /// Reads a profile that `calibrate` has written for this model.
    ///
    /// # Errors
    /// For a file that cannot be read, is not a profile, or belongs to another model.
    pub fn read(path: &Path, model: &ModelConfig) -> anyhow::Result<Self> {
        let name = || format!("--profile {}", path.display());
        let expected = || format!("{}: expected a file that calibrate has written", name());
        let text = read_bytes(&name(), path).with_context(expected)?;
        let settings: AttentionProfile = serde_json::from_slice(&text).with_context(expected)?;
        check(&settings, model)
            .with_context(|| format!("{} (calibrate makes one for this model)", name()))?;
        Ok(Self { name: path.display().to_string(), settings })
    }

    /// The profile that comes with the programs, if there is one for this model.
    pub fn built_in(model: &Model) -> Option<Self> {
        Self::built_in_for(model.config(), &model.weights().layers.first()?.attention_norm)
    }

    /// The same for a model that is not loaded: of its weights the norm before the first layer's attention is enough.
    pub(crate) fn built_in_for(model: &ModelConfig, first_norm: &Array1<f32>) -> Option<Self> {
        let digest = norm_digest(first_norm);
        BUILT_IN.iter().filter(|built_in| built_in.norm == digest).find_map(
            |BuiltIn { name, json, .. }| {
                let settings: AttentionProfile = serde_json::from_str(json).ok()?;
                check(&settings, model).ok()?;
                Some(Self { name: (*name).to_owned(), settings })
            },
        )
    }
}

fn check(settings: &AttentionProfile, config: &ModelConfig) -> Result<(), deltallm::CoreError> {
    settings.check(config.fingerprint(), [config.layers, config.kv_heads, config.head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadedModel;

    #[test]
    fn the_built_in_profiles_are_sound_and_the_embedded_models_have_theirs() {
        for BuiltIn { name, json, .. } in BUILT_IN {
            let settings: AttentionProfile = serde_json::from_str(json).unwrap();
            assert!(settings.provenance().is_some(), "{name}");
        }
        for model in ["fairy-tales", "bitnet-tiny"] {
            let graph = LoadedModel::open(Some(Path::new(model))).unwrap().graph;
            assert_eq!(ModelProfile::built_in(&graph).unwrap().name, format!("{model} (built in)"));
        }
    }

    #[test]
    fn another_model_of_the_same_shape_does_not_get_the_profile() {
        let graph = LoadedModel::open(None).unwrap().graph;
        let mut norm = graph.weights().layers[0].attention_norm.clone();
        assert!(ModelProfile::built_in_for(graph.config(), &norm).is_some());
        norm[0] *= 1.5;
        assert!(ModelProfile::built_in_for(graph.config(), &norm).is_none());
    }
}
