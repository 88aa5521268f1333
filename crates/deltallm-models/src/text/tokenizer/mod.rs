//! Text to token ids and back.
//!
//! [`Tokenizer::from_gguf_vocabulary`] builds one from GGUF metadata and [`Tokenizer::from_json_file`] from a
//! `tokenizer.json`. Splitting and merging are those of the `tokenizers` crate; special tokens and decoding
//! are done here, so that plain text cannot make control tokens and a stream of tokens can be decoded without
//! going back.

mod bpe;
mod byte_level;
mod error;
mod from_model;
mod json;
mod pieces;
mod pre_tokenizer;
mod sentencepiece;
mod special;
mod stream;
mod vocabulary;

use std::borrow::Cow;
use std::path::Path;

use tokenizers::models::bpe::BPE;
use tokenizers::{
    Model, Normalizer, NormalizerWrapper, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

pub use error::TokenizerError;
pub use stream::StreamDecoder;
pub use vocabulary::GgufVocabulary;

use pieces::Pieces;
use special::{ESCAPE, SpecialToken, SpecialTokens};
use vocabulary::TokenKind;

/// Control tokens that end an answer in the chat formats of Model, SmolLM, Gemma, Phi and their kin, besides
/// `eos`.
const END_OF_TURN: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "<|end|>",
    "</s>",
];

/// A vocabulary with its rules for cutting text into tokens.
///
/// ```
/// use deltallm_models::{GgufVocabulary, Tokenizer};
///
/// let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
///     model: "gpt2",
///     pre: Some("gpt-2"),
///     tokens: vec!["a", "b", "ab", "<|end|>"],
///     token_types: &[1, 1, 1, 3],
///     merges: vec!["a b"],
///     eos: Some(3),
///     ..GgufVocabulary::default()
/// })?;
/// assert_eq!(tokenizer.encode("abb", false)?, [2, 1]);
/// assert_eq!(tokenizer.encode_prompt("ab<|end|>", false)?, [2, 3]);
/// assert_eq!(tokenizer.decode(&[2, 1])?, "abb");
/// # Ok::<(), deltallm_models::TokenizerError>(())
/// ```
pub struct Tokenizer {
    normalizer: Option<NormalizerWrapper>,
    pre_tokenizer: Option<PreTokenizerWrapper>,
    model: BPE,
    special: SpecialTokens,
    pieces: Pieces,
    bos: Option<u32>,
    eos_ids: Vec<u32>,
    /// Put before and after a text when special tokens are asked for.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// Whether encoding puts a space in front of the text, which decoding takes away.
    strips_space: bool,
    chat_template: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos_ids", &self.eos_ids)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer that GGUF metadata describes.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the first inconsistency: no tokens, lengths that differ, an unknown
    /// model or pre-tokenizer, duplicate tokens, merges of unknown tokens, scores that are not finite.
    pub fn from_gguf_vocabulary(vocabulary: &GgufVocabulary<'_>) -> Result<Self, TokenizerError> {
        let kinds = vocabulary.kinds()?;
        let tokens = &vocabulary.tokens;
        let spm = match vocabulary.model {
            "gpt2" => false,
            "llama" => true,
            got => {
                return Err(TokenizerError::UnsupportedModel {
                    got: got.to_owned(),
                    supported: &["gpt2", "llama"],
                });
            }
        };
        let strips_space = spm && vocabulary.add_space_prefix.unwrap_or(true);
        let (normalizer, pre_tokenizer, model) = if spm {
            let model = sentencepiece::model(vocabulary, &kinds)?;
            (Some(sentencepiece::normalizer(strips_space)?), None, model)
        } else {
            let (model, pre) = byte_level::model(vocabulary, &kinds)?;
            (None, Some(pre), model)
        };
        let special = (0u32..)
            .zip(tokens.iter().zip(&kinds))
            .filter(|(_, (_, kind))| {
                matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            })
            .map(|(id, (token, &kind))| SpecialToken {
                id,
                // SentencePiece spells the spaces of user-defined tokens as it does those of pieces.
                content: if spm { token.replace(sentencepiece::SPACE, " ") } else { (*token).to_owned() },
                control: kind != TokenKind::UserDefined,
                lstrip: false,
                rstrip: false,
            })
            .collect();
        let pieces = Pieces::new(kinds, |id, kind, bytes| {
            if matches!(kind, TokenKind::Control | TokenKind::UserDefined) && !spm {
                bytes.extend_from_slice(tokens[id].as_bytes());
            } else if spm {
                sentencepiece::push_bytes(tokens[id], kind, bytes);
            } else {
                byte_level::push_bytes(tokens[id], bytes);
            }
        });
        let add = |wanted: bool, id: Option<u32>| id.filter(|_| wanted).into_iter().collect();
        let mut tokenizer = Self {
            normalizer,
            pre_tokenizer,
            model,
            special: SpecialTokens::new(special)?,
            pieces,
            bos: vocabulary.bos,
            eos_ids: Vec::new(),
            prefix: add(vocabulary.add_bos.unwrap_or(spm), vocabulary.bos),
            suffix: add(vocabulary.add_eos.unwrap_or(false), vocabulary.eos),
            strips_space,
            chat_template: vocabulary.chat_template.map(str::to_owned),
        };
        tokenizer.set_eos_ids(vocabulary.eos.into_iter().chain(vocabulary.eot));
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` and what lies beside it: `tokenizer_config.json`, `generation_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja`, each where there is one.
    ///
    /// # Errors
    /// A [`TokenizerError`] that names the file, or the part of it, that cannot be read.
    pub fn from_json_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        json::read(path.as_ref())
    }

    /// Encodes text that is taken as nothing but text: control tokens spelled out in it are encoded as their
    /// characters.
    ///
    /// `add_special` adds what the model wants around a text, most often `bos` in front.
    ///
    /// # Errors
    /// [`TokenizerError::Pipeline`] if a step of the `tokenizers` crate fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, add_special, false)
    }

    /// Encodes trusted text, such as the output of a chat template: control tokens spelled out in it become
    /// those tokens.
    ///
    /// Text of others that goes into the template must go through [`escape`](Self::escape) first.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_prompt(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, add_special, true)
    }

    /// `content` such that [`encode_prompt`](Self::encode_prompt) takes the control tokens spelled out in it
    /// as text.
    ///
    /// Each is preceded by the noncharacter U+FDD0, which `encode_prompt` takes out again.
    pub fn escape<'t>(&self, content: &'t str) -> Cow<'t, str> {
        self.special.escape(content)
    }

    fn encode_with(&self, text: &str, add_special: bool, control: bool) -> Result<Vec<u32>, TokenizerError> {
        let step = |step| move |source| TokenizerError::Pipeline { step, source };
        let mut parts = PreTokenizedString::from(text);
        parts.split(|_, part| Ok(self.special.split(part, control))).map_err(step("special tokens"))?;
        parts
            .normalize(|part| {
                if control && part.get().contains(ESCAPE) {
                    part.filter(|character| character != ESCAPE);
                }
                self.normalizer.as_ref().map_or(Ok(()), |normalizer| normalizer.normalize(part))
            })
            .map_err(step("normalizer"))?;
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut parts).map_err(step("pre-tokenizer"))?;
        }
        parts.tokenize(|part| self.model.tokenize(part.get())).map_err(step("model"))?;
        let encoding = parts.into_encoding(None, 0, OffsetType::None).map_err(step("encoding"))?;

        let mut ids = Vec::with_capacity(encoding.len() + self.prefix.len() + self.suffix.len());
        if add_special {
            ids.extend_from_slice(&self.prefix);
        }
        ids.extend_from_slice(encoding.get_ids());
        if add_special {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    /// The text of `ids`. Control tokens have none; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`] for an id that the vocabulary does not have.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.text_bytes(id)?);
        }
        let text = match bytes.strip_prefix(b" ") {
            Some(stripped) if self.strips_space => stripped,
            _ => &bytes,
        };
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The text of one token as the vocabulary has it, control tokens spelled out, bytes that are not UTF-8
    /// as U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`] for an id that the vocabulary does not have.
    pub fn token_text(&self, id: u32) -> Result<Cow<'_, str>, TokenizerError> {
        self.pieces.get(id).map(|(_, bytes)| String::from_utf8_lossy(bytes))
    }

    /// The bytes that `id` adds to a text.
    fn text_bytes(&self, id: u32) -> Result<&[u8], TokenizerError> {
        let (kind, bytes) = self.pieces.get(id)?;
        Ok(if kind == TokenKind::Control { &[] } else { bytes })
    }

    fn strips_space(&self) -> bool {
        self.strips_space
    }

    /// The token that begins a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The tokens that end an answer: `eos`, and the end-of-turn tokens that the vocabulary has.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// One more than the highest token id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token as the vocabulary spells it (in byte-level vocabularies `Ġ` for a space, otherwise
    /// `▁`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.special.control_id(token).or_else(|| self.model.token_to_id(token))
    }

    /// The source of the model's chat template, if it has one: for [`ChatTemplate`](crate::ChatTemplate).
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    fn set_eos_ids(&mut self, named: impl IntoIterator<Item = u32>) {
        let turn_ends = END_OF_TURN.iter().filter_map(|token| self.special.control_id(token));
        let mut ids: Vec<u32> = named.into_iter().chain(turn_ends).collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|&id| seen.insert(id));
        self.eos_ids = ids;
    }
}
