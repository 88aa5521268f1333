//! The tokenizer that comes with a model.

#[cfg(feature = "gguf")]
use super::GgufVocabulary;
use super::Tokenizer;
#[cfg(feature = "gguf")]
use crate::gguf::{GgufError, GgufFile, Value};
use crate::{ModelError, ModelFile};

impl Tokenizer {
    /// The tokenizer of an open model: from the metadata of a GGUF file, or from the `tokenizer.json` beside
    /// safetensors files. Ids that the model knows and no token has, with which many embeddings are padded, have no text.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] for a vocabulary that is missing or inconsistent, [`ModelError::Gguf`] for metadata of
    /// another type than the format has there.
    pub fn from_model(file: &ModelFile) -> Result<Self, ModelError> {
        let mut tokenizer = Self::of_file(file)?;
        // A file of a vocabulary alone has no embedding.
        tokenizer.pieces.pad_to(file.embedding_rows().unwrap_or_default());
        Ok(tokenizer)
    }

    fn of_file(file: &ModelFile) -> Result<Self, ModelError> {
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

/// The keys under `tokenizer.ggml.` that are used.
#[cfg(feature = "gguf")]
const USED: &[&str] = &[
    "model",
    "pre",
    "tokens",
    "scores",
    "token_type",
    "merges",
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "unknown_token_id",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
];

/// Keys under `tokenizer.ggml.` that change nothing for the vocabularies that are read, whatever they say.
#[cfg(feature = "gguf")]
const IRRELEVANT: &[&str] = &[
    // Tokens that plain texts and chats do not need.
    "padding_token_id",
    "separator_token_id",
    // As older converters spell it.
    "seperator_token_id",
    "cls_token_id",
    "mask_token_id",
    "prefix_token_id",
    "suffix_token_id",
    "middle_token_id",
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
    // Of other kinds of vocabularies: BERT's and T5's.
    "token_type_count",
    "precompiled_charsmap",
    "remove_extra_whitespaces",
    // They are among the tokens, with their types.
    "added_tokens",
];

/// Keys under `tokenizer.ggml.` for what is not done: they may say that it is not to be done.
#[cfg(feature = "gguf")]
const OFF: &[&str] = &["add_sep_token", "normalizer.lowercase"];

/// Refuses what may change the tokens of a text and is not known here.
#[cfg(feature = "gguf")]
fn refuse_others(file: &GgufFile) -> Result<(), GgufError> {
    for (key, value) in file.metadata().iter() {
        let Some(name) = key.strip_prefix("tokenizer.") else { continue };
        let is_known = match name.strip_prefix("ggml.") {
            Some(name) => {
                USED.contains(&name)
                    || IRRELEVANT.contains(&name)
                    || OFF.contains(&name) && *value == Value::Bool(false)
            }
            // The same tokenizer once more, and templates for other ends than a chat.
            None => {
                matches!(name, "huggingface.json" | "rwkv.world" | "chat_template" | "chat_templates")
                    || name.starts_with("chat_template.")
            }
        };
        if !is_known {
            let got = match value {
                Value::Bool(value) => value.to_string(),
                other => other.type_name().to_owned(),
            };
            return Err(GgufError::UnknownTokenizerKey { key: key.to_owned(), got });
        }
    }
    Ok(())
}

/// The `tokenizer.*` keys of the
/// [GGUF specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer).
#[cfg(feature = "gguf")]
fn vocabulary(file: &GgufFile) -> Result<GgufVocabulary<'_>, GgufError> {
    refuse_others(file)?;
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
