//! A vocabulary as GGUF metadata holds it.

use super::TokenizerError;

/// Token ids above this are taken for a corrupt file: the largest published vocabularies have about 2^18
/// tokens.
pub(super) const MAX_TOKEN_IDS: usize = 1 << 20;

/// Longest text of a token, in bytes. Published ones have up to some hundred (runs of spaces, addresses of the web); what looks for tokens
/// in a text takes time that grows with the longest.
pub(super) const MAX_TOKEN_BYTES: usize = 4 << 10;

/// Refuses a token that is longer than any real one.
pub(super) fn check_length(id: u32, token: &str) -> Result<(), TokenizerError> {
    match token.len() {
        0..=MAX_TOKEN_BYTES => Ok(()),
        got => Err(TokenizerError::TokenTooLong { id, limit: MAX_TOKEN_BYTES, got }),
    }
}

/// The `tokenizer.ggml.*` metadata of a GGUF file, borrowed.
///
/// Field by field as in the [GGUF
/// specification](https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer).
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary<'a> {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: the pre-tokenizer of a `gpt2` vocabulary. `None` means `default`.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`, in the order of their ids.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.scores`, one per token, for `llama` vocabularies; otherwise empty.
    pub scores: &'a [f32],
    /// `tokenizer.ggml.token_type`, one per token; empty means that all are normal but `bos`, `eos` and
    /// `unk`.
    pub token_types: &'a [i32],
    /// `tokenizer.ggml.merges`, `left right`, best first, for `gpt2` vocabularies; otherwise empty.
    pub merges: Vec<&'a str>,
    /// `tokenizer.ggml.bos_token_id`. `None` means 1 for `llama`, and none for `gpt2`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`. `None` means 2 for `llama`, and none for `gpt2`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn where that is another token than `eos`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: ends a message that a tool is to answer.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`. `None` means the default of the kind: true for `llama` and the pre-tokenizers of
    /// Llama 3 (`llama-bpe`, `llama3`, `llama-v3`) and Mistral (`tekken`), false for others.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`. `None` means false.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix` of a `llama` vocabulary. `None` means true.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<&'a str>,
}

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    /// Has a meaning and no text; never made from plain text.
    Control,
    /// Text that is matched whole before anything else.
    UserDefined,
    Unused,
    Byte,
    /// An id that no token has (tokenizer.json may leave holes).
    Absent,
}

impl TokenKind {
    fn from_gguf(id: usize, value: i32) -> Result<Self, TokenizerError> {
        Ok(match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            got => return Err(TokenizerError::UnknownTokenType { id: id as u32, got }),
        })
    }

    /// Whether the model may produce this token from plain text.
    pub(super) fn is_text(self) -> bool {
        !matches!(self, Self::Control | Self::Unused | Self::Absent)
    }
}

impl GgufVocabulary<'_> {
    /// Checks counts, lengths and ids, and returns the kind of every token.
    pub(super) fn kinds(&self) -> Result<Vec<TokenKind>, TokenizerError> {
        let expected = self.tokens.len();
        if expected == 0 {
            return Err(TokenizerError::EmptyVocabulary);
        }
        if expected > MAX_TOKEN_IDS {
            return Err(TokenizerError::VocabularyTooLarge { limit: MAX_TOKEN_IDS, got: expected });
        }
        (0u32..).zip(&self.tokens).try_for_each(|(id, token)| check_length(id, token))?;
        for (field, got) in [("scores", self.scores.len()), ("token_types", self.token_types.len())] {
            if got != 0 && got != expected {
                return Err(TokenizerError::LengthMismatch { field, expected, got });
            }
        }
        let special =
            [("bos", self.bos), ("eos", self.eos), ("eot", self.eot), ("eom", self.eom), ("unk", self.unk)];
        for (what, id) in special {
            if let Some(id) = id.filter(|&id| id as usize >= expected) {
                return Err(TokenizerError::IdOutOfRange { what, id, vocab_size: expected });
            }
        }
        let mut kinds = vec![TokenKind::Normal; expected];
        if self.token_types.is_empty() {
            for (what, id) in special {
                if let Some(id) = id {
                    kinds[id as usize] = if what == "unk" { TokenKind::Unknown } else { TokenKind::Control };
                }
            }
        }
        for (id, &value) in self.token_types.iter().enumerate() {
            kinds[id] = TokenKind::from_gguf(id, value)?;
        }
        Ok(kinds)
    }
}
