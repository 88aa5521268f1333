//! Text to token ids and back, whatever file the vocabulary comes from.

use std::borrow::Cow;

use tokenizers::models::bpe::BPE;
use tokenizers::{
    Model, Normalizer, NormalizerWrapper, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
};

use super::TokenizerError;
use super::pieces::Pieces;
use super::special::{ESCAPE, SpecialTokens};
use super::vocabulary::TokenKind;

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
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: BPE,
    pub(super) special: SpecialTokens,
    pub(super) pieces: Pieces,
    pub(super) bos: Option<u32>,
    pub(super) eos_ids: Vec<u32>,
    /// Put before and after a text when special tokens are asked for.
    pub(super) prefix: Vec<u32>,
    pub(super) suffix: Vec<u32>,
    /// Whether encoding puts a space in front of the text, which decoding takes away.
    pub(super) strips_space: bool,
    pub(super) chat_template: Option<String>,
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

    /// Encodes the beginning of a text that is to go on: with what the model wants in front of a text, but without what it wants behind
    /// one. Some files ask for `eos` there, after which a model begins something new.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_beginning(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text, true)?;
        ids.truncate(ids.len() - self.suffix.len());
        Ok(ids)
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
    pub(super) fn text_bytes(&self, id: u32) -> Result<&[u8], TokenizerError> {
        let (kind, bytes) = self.pieces.get(id)?;
        Ok(if kind == TokenKind::Control { &[] } else { bytes })
    }

    pub(super) fn strips_space(&self) -> bool {
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

    pub(super) fn set_eos_ids(&mut self, named: impl IntoIterator<Item = u32>) {
        let turn_ends = END_OF_TURN.iter().filter_map(|token| self.special.control_id(token));
        let mut ids: Vec<u32> = named.into_iter().chain(turn_ends).collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|&id| seen.insert(id));
        self.eos_ids = ids;
    }
}
