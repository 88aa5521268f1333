//! A vocabulary in a JSON file: the fixtures of `tools/goldens`.

use std::path::{Path, PathBuf};

use deltallm_models::GgufVocabulary;
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct VocabularyFile {
    pub(crate) model: String,
    pub(crate) pre: Option<String>,
    pub(crate) tokens: Vec<String>,
    #[serde(default)]
    pub(crate) scores: Vec<f32>,
    #[serde(default)]
    pub(crate) token_types: Vec<i32>,
    #[serde(default)]
    pub(crate) merges: Vec<String>,
    pub(crate) bos_token_id: Option<u32>,
    pub(crate) eos_token_id: Option<u32>,
    pub(crate) unknown_token_id: Option<u32>,
    pub(crate) add_space_prefix: Option<bool>,
    #[serde(default)]
    pub(crate) cases: Vec<Case>,
}

/// A text and the ids that the reference gives, no special tokens added.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name)
}

pub(crate) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl VocabularyFile {
    pub(crate) fn as_gguf(&self) -> GgufVocabulary<'_> {
        GgufVocabulary {
            model: &self.model,
            pre: self.pre.as_deref(),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            scores: &self.scores,
            token_types: &self.token_types,
            merges: self.merges.iter().map(String::as_str).collect(),
            bos: self.bos_token_id,
            eos: self.eos_token_id,
            unk: self.unknown_token_id,
            add_space_prefix: self.add_space_prefix,
            ..GgufVocabulary::default()
        }
    }
}
