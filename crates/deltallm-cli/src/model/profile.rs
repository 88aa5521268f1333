//! Calibrated settings of a model: from a file, or those that come with the programs.

use std::path::Path;

use anyhow::Context;
use deltallm::AttentionProfile;
use deltallm::models::ModelConfig;

use crate::input::read_bytes;

/// The profiles of `assets/profiles`; `docs/results/calibration.md` says how they were made and what they cost.
const BUILT_IN: [(&str, &str); 3] = [
    ("bitnet-tiny (built in)", include_str!("../../assets/profiles/bitnet-tiny.json")),
    ("fairy-tales (built in)", include_str!("../../assets/profiles/fairy-tales.json")),
    ("smollm2-135m (built in)", include_str!("../../assets/profiles/smollm2-135m.json")),
];

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
    pub fn built_in(model: &ModelConfig) -> Option<Self> {
        BUILT_IN.iter().find_map(|(name, json)| {
            let settings: AttentionProfile = serde_json::from_str(json).ok()?;
            check(&settings, model).ok()?;
            Some(Self { name: (*name).to_owned(), settings })
        })
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
        for (name, json) in BUILT_IN {
            let settings: AttentionProfile = serde_json::from_str(json).unwrap();
            assert!(settings.provenance().is_some(), "{name}");
        }
        for model in ["fairy-tales", "bitnet-tiny"] {
            let graph = LoadedModel::open(Some(Path::new(model))).unwrap().graph;
            assert_eq!(ModelProfile::built_in(graph.config()).unwrap().name, format!("{model} (built in)"));
        }
    }
}
