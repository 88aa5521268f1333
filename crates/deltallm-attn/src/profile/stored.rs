//! The JSON form of a profile.

use std::sync::Arc;

use deltallm_core::{ModelFingerprint, ThresholdPolicy, ThresholdProfile};
use serde::{Deserialize, Deserializer, de::Error};

use super::{AttentionProfile, Provenance};
use crate::{AttentionError, KernelSpec, SpecError};

/// Version of the JSON form that is written, and the only one that is read.
const VERSION: u32 = 3;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredProfile {
    // First in the file, so that a profile of another version is refused for that and not for its fields.
    #[serde(deserialize_with = "version")]
    version: u32,
    model: ModelFingerprint,
    kv_heads: usize,
    head_dim: usize,
    provenance: Option<Provenance>,
    spec: KernelSpec,
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        got => Err(D::Error::custom(format!(
            "expected a profile of version {VERSION}, got version {got}: make a new one with \
             `calibrate --model MODEL --text TEXT --sparsity S --out PROFILE`"
        ))),
    }
}

impl TryFrom<StoredProfile> for AttentionProfile {
    type Error = AttentionError;

    fn try_from(stored: StoredProfile) -> Result<Self, AttentionError> {
        let StoredProfile { version: _, model, kv_heads, head_dim, provenance, spec } = stored;
        let ThresholdPolicy::Profile(list) = &spec.thresholds else {
            let expected = "channels, the thresholds of all layers";
            return Err(SpecError::new("thresholds", expected, "others, or none").into());
        };
        let thresholds = list.thresholds().to_vec();
        let size = kv_heads.saturating_mul(head_dim).max(1);
        let layers = if spec.layers.is_empty() { thresholds.len() / size } else { spec.layers.len() };
        let thresholds = ThresholdProfile::new(model, [layers, kv_heads, head_dim], thresholds)?;
        Ok(Self { provenance, ..Self::new(Arc::new(thresholds), spec)? })
    }
}

impl From<AttentionProfile> for StoredProfile {
    fn from(profile: AttentionProfile) -> Self {
        let AttentionProfile { thresholds, spec, provenance } = profile;
        let [_, kv_heads, head_dim] = thresholds.shape();
        Self { version: VERSION, model: thresholds.model(), kv_heads, head_dim, provenance, spec }
    }
}
