//! The tokenizer that comes with a model.

#[cfg(feature = "gguf")]
use super::GgufVocabulary;
use super::Tokenizer;
#[cfg(feature = "gguf")]
use crate::gguf::{GgufError, GgufFile, Value};
use crate::{ModelError, ModelFile};

impl Tokenizer {
    /// The tokenizer of an open model: from the metadata of a GGUF file, or from the `tokenizer.json` beside
    /// safetensors files.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for a vocabulary that is missing or inconsistent, [`ModelError::Gguf`] for metadata of
    /// another type than the format has there.
    pub fn from_model(file: &ModelFile) -> Result<Self, ModelError> {
        let tokenizer = |source| ModelError::Tokenizer { file: file.path().to_owned(), source };
        #[cfg(feature = "gguf")]
        if let Some(header) = file.gguf() {
            let vocabulary = vocabulary(header)
                .map_err(|source| ModelError::Gguf { file: file.path().to_owned(), source })?;
            return Self::from_gguf_vocabulary(&vocabulary).map_err(tokenizer);
        }
        #[cfg(feature = "safetensors")]
        if let Some(model) = file.safetensors() {
            return Self::from_json_file(model.directory().join("tokenizer.json")).map_err(tokenizer);
        }
        // There is no third format; an empty vocabulary says what is missing should one come.
        Err(tokenizer(super::TokenizerError::EmptyVocabulary))
    }
}

/// The `tokenizer.*` keys of the
/// [GGUF specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer).
#[cfg(feature = "gguf")]
fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary<'_>, GgufError> {
    let metadata = file.metadata();
    let strings = |key| -> Result<Vec<&str>, GgufError> {
        Ok(metadata.strings(key)?.unwrap_or_default().iter().map(String::as_str).collect())
    };
    let id = |key| -> Result<Option<u32>, GgufError> {
        match metadata.get(key) {
            // What -1 looks like in each type: converters write it for a token that there is not.
            Some(Value::U32(u32::MAX) | Value::U64(u64::MAX) | Value::I32(-1) | Value::I64(-1)) => Ok(None),
            // An id beyond u32 is beyond every vocabulary too, and is refused as that.
            _ => Ok(metadata.integer(key)?.map(|id| u32::try_from(id).unwrap_or(u32::MAX))),
        }
    };
    let model = metadata.string("tokenizer.ggml.model")?.unwrap_or_default();
    // Without merges every byte would be a token of its own. No merges at all are meant only if the file says so.
    if model == "gpt2" && metadata.get("tokenizer.ggml.merges").is_none() {
        return Err(GgufError::MissingKey { key: "tokenizer.ggml.merges".to_owned() });
    }
    Ok(GgufVocabulary {
        model,
        pre: metadata.string("tokenizer.ggml.pre")?,
        tokens: strings("tokenizer.ggml.tokens")?,
        scores: metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: strings("tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        eot: id("tokenizer.ggml.eot_token_id")?,
        eom: id("tokenizer.ggml.eom_token_id")?,
        unk: id("tokenizer.ggml.unknown_token_id")?,
        add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.bool("tokenizer.ggml.add_space_prefix")?,
        chat_template: metadata.string("tokenizer.chat_template")?,
    })
}

#[cfg(all(test, feature = "gguf", feature = "safetensors"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::TokenizerError;

    fn from_fixture(name: &str) -> Result<Tokenizer, ModelError> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama/gqa1-d32");
        Tokenizer::from_model(&ModelFile::open(fixtures.join(name)).unwrap())
    }

    #[test]
    fn a_file_without_a_vocabulary_is_refused() {
        let error = from_fixture("model.gguf").unwrap_err();
        assert!(
            matches!(error, ModelError::Tokenizer { source: TokenizerError::EmptyVocabulary, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_directory_without_a_tokenizer_is_refused() {
        let error = from_fixture("").unwrap_err();
        assert!(matches!(error, ModelError::Tokenizer { source: TokenizerError::Io { .. }, .. }), "{error}");
    }
}
