//! What can be wrong with a vocabulary, a tokenizer file or a list of token ids.

use std::path::PathBuf;
use std::time::Duration;

use deltallm_core::internal::{message, quoted};

/// Why a tokenizer could not be built, or could not encode or decode.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The vocabulary has no token at all.
    #[error("empty vocabulary: expected at least one token, got 0")]
    EmptyVocabulary,
    /// More tokens, or a higher token id, than any vocabulary has.
    #[error("vocabulary too large: expected at most {limit} token ids, got {got}")]
    VocabularyTooLarge {
        /// Most token ids accepted.
        limit: usize,
        /// Token ids the vocabulary asks for.
        got: usize,
    },
    /// The kind of vocabulary is not one this crate reads.
    #[error("unsupported tokenizer model: expected one of {}, got `{got}`", .supported.join(", "), got = quoted(got))]
    UnsupportedModel {
        /// The kind named by the file.
        got: String,
        /// The kinds that can be read.
        supported: &'static [&'static str],
    },
    /// The pre-tokenizer is not one this crate knows.
    #[error("unknown pre-tokenizer: expected one of {}, got `{got}`", .supported.join(", "), got = quoted(got))]
    UnknownPreTokenizer {
        /// The name in the file.
        got: String,
        /// The names that are known.
        supported: &'static [&'static str],
    },
    /// An array that goes with the tokens has another length than they have.
    #[error("`{field}`: expected one entry for each of {expected} tokens, got {got}")]
    LengthMismatch {
        /// The array's name.
        field: &'static str,
        /// Number of tokens.
        expected: usize,
        /// Entries in the array.
        got: usize,
    },
    /// A token type outside the format's 1..=6.
    #[error("token {id}: expected a token type in 1..=6, got {got}")]
    UnknownTokenType {
        /// The token's id.
        id: u32,
        /// The type in the file.
        got: i32,
    },
    /// Two ids spell the same token.
    #[error("duplicate token `{token}`: expected one id, got {first} and {second}", token = quoted(token))]
    DuplicateToken {
        /// The token's text.
        token: String,
        /// The first id.
        first: u32,
        /// The second id.
        second: u32,
    },
    /// Two tokens share an id.
    #[error("duplicate id {id}: expected one token, got `{first}` and `{second}`", first = quoted(first), second = quoted(second))]
    DuplicateId {
        /// The id.
        id: u32,
        /// One of the tokens.
        first: String,
        /// The other.
        second: String,
    },
    /// A token is longer than any real one.
    #[error("token {id}: expected at most {limit} bytes of text, got {got}")]
    TokenTooLong {
        /// The token's id.
        id: u32,
        /// The most bytes accepted.
        limit: usize,
        /// Its bytes.
        got: usize,
    },
    /// The special tokens of a vocabulary have more text than those of any real one.
    #[error("special tokens: expected at most {limit} bytes of text in all, got {got}")]
    SpecialTokensTooLong {
        /// The most bytes accepted.
        limit: usize,
        /// Their bytes.
        got: usize,
    },
    /// There are far more ways to put tokens together than in any trained vocabulary.
    #[error("vocabulary: expected merges of at most {limit} bytes to follow from it, got more")]
    TooManyMerges {
        /// The most bytes accepted, for a vocabulary of this size.
        limit: usize,
    },
    /// A token is to be put around texts, and the file does not say which.
    #[error(
        "`tokenizer.ggml.{key}`: expected the id of a token, because the file says to add it to texts, got none"
    )]
    MissingSpecialToken {
        /// The key of the id.
        key: &'static str,
    },
    /// A merge is not two tokens.
    #[error("merge {index}: expected two tokens separated by a space, got `{got}`", got = quoted(got))]
    MalformedMerge {
        /// The merge's rank.
        index: usize,
        /// Its text.
        got: String,
    },
    /// A merge names, or makes, a token that the vocabulary does not have.
    #[error("merge {index}: expected tokens of the vocabulary, got `{token}`, which is not one", token = quoted(token))]
    UnknownMergeToken {
        /// The merge's rank.
        index: usize,
        /// The unknown token.
        token: String,
    },
    /// A score that is not a number.
    #[error("token {id}: expected a finite score, got {got}")]
    InvalidScore {
        /// The token's id.
        id: u32,
        /// The score in the file.
        got: f32,
    },
    /// A token id that the vocabulary does not have.
    #[error("{what}: expected the id of a token, below {vocab_size}, got {id}")]
    IdOutOfRange {
        /// What the id was for.
        what: &'static str,
        /// The id.
        id: u32,
        /// One more than the highest id.
        vocab_size: usize,
    },
    /// A part of tokenizer.json that this crate does not read.
    #[error("tokenizer.json: expected {expected} in `{field}`, got {got}", got = quoted(got))]
    UnsupportedField {
        /// Where in the file.
        field: &'static str,
        /// What can be read there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// The normalizer of tokenizer.json makes a text so much longer as none that is meant for text does.
    #[error("normalizer: expected a text of at most {limit} bytes, got {got}")]
    NormalizedTooLong {
        /// The most bytes accepted for this text.
        limit: usize,
        /// The bytes it has become.
        got: usize,
    },
    /// The regular expressions of tokenizer.json take so long over a text as none that is meant for text does.
    #[error(
        "tokenizer.json: expected expressions that take at most {limit:?} over this text, got slower ones; use a tokenizer of a source that you trust"
    )]
    ExpressionTooSlow {
        /// The time allowed for this text.
        limit: Duration,
    },
    /// A file could not be read.
    #[error("cannot read {}", message(path.display()))]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file is larger than any real one.
    #[error("{}: expected at most {limit} bytes, got at least {got}", message(path.display()))]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
        /// Its size in bytes; of a file without an end, such as a device, what was read of it.
        got: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{}: not a valid tokenizer file", message(path.display()))]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The `tokenizers` crate refused a step.
    #[error("tokenizer step `{step}` failed")]
    Pipeline {
        /// The step.
        step: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
