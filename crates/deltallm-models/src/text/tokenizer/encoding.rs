//! Text to token ids and back, whatever file the vocabulary comes from.

use std::borrow::Cow;

use tokenizers::models::bpe::BPE;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString};

use super::TokenizerError;
use super::expression::Effort;
use super::normalizer::Normalizer;
use super::pieces::Pieces;
use super::pre_tokenizer::PreTokenizers;
use super::special::{Part, SpecialTokens, unescape};
use super::vocabulary::TokenKind;

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
    pub(super) normalizer: Normalizer,
    pub(super) pre_tokenizers: PreTokenizers,
    pub(super) model: BPE,
    /// Found in the text as it comes.
    pub(super) special: SpecialTokens,
    /// Found in the text that has been normalized; no control tokens.
    pub(super) normalized_special: SpecialTokens,
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
    /// [`TokenizerError::Pipeline`] if a step of the `tokenizers` crate fails, [`TokenizerError::NormalizedTooLong`] and
    /// [`TokenizerError::ExpressionTooSlow`] if those of a tokenizer.json make too much of a text or take too long.
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
    /// Each is preceded by the noncharacter U+FDD0, which `encode_prompt` takes out again, and so is each U+FDD0 in the text.
    pub fn escape<'t>(&self, content: &'t str) -> Cow<'t, str> {
        self.special.escape(content)
    }

    fn encode_with(&self, text: &str, add_special: bool, control: bool) -> Result<Vec<u32>, TokenizerError> {
        let (prefix, suffix) = if add_special { (&*self.prefix, &*self.suffix) } else { (&[][..], &[][..]) };
        let effort = Effort::of(text);
        let mut ids = prefix.to_vec();
        for part in self.special.split(text, control) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(range) => {
                    let part = &text[range.clone()];
                    let part = if control { unescape(part) } else { Cow::Borrowed(part) };
                    self.encode_part(&part, range.start == 0, &effort, &mut ids)?;
                }
            }
        }
        ids.extend_from_slice(suffix);
        Ok(ids)
    }

    /// Encodes what is between control tokens.
    fn encode_part(
        &self,
        part: &str,
        at_start: bool,
        effort: &Effort,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let text = self.normalizer.apply(part, effort)?;
        for part in self.normalized_special.split(&text, false) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(range) => {
                    let at_start = at_start && range.start == 0;
                    let mut words = PreTokenizedString::from(&text[range]);
                    self.pre_tokenizers.cut(&mut words, at_start, effort)?;
                    for (word, _, _) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                        let tokens = self
                            .model
                            .tokenize(word)
                            .map_err(|source| TokenizerError::Pipeline { step: "model", source })?;
                        ids.extend(tokens.iter().map(|token| token.id));
                    }
                }
            }
        }
        Ok(())
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

    /// Puts ids that a file names in front of those that end an answer because of their text.
    pub(super) fn set_eos_ids(&mut self, named: impl IntoIterator<Item = u32>) {
        let mut ids: Vec<u32> = named.into_iter().chain(std::mem::take(&mut self.eos_ids)).collect();
        let mut seen = std::collections::HashSet::new();
        ids.retain(|&id| seen.insert(id));
        self.eos_ids = ids;
    }
}
