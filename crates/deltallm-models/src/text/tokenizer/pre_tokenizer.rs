//! Pre-tokenizers: how text is cut into the pieces within which byte-level BPE merges.
//!
//! GGUF names them (`tokenizer.ggml.pre`) and leaves the rules to the reader. The rules here are those of the
//! original tokenizer.json files, except `default`, which is llama.cpp's.

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;

/// The names understood, aliases included.
const SUPPORTED: &[&str] = &["smollm", "llama-bpe", "llama3", "llama-v3", "default", "gpt-2"];

/// Llama 3: contractions, words with one leading symbol, up to three digits, punctuation, line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's fallback: punctuation apart, GPT-2's rule, numbers apart, and then in threes.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];

/// A pre-tokenizer, and what it implies for the model.
pub(super) struct PreTokenizer {
    pub(super) steps: PreTokenizerWrapper,
    /// Whether a whole pre-token that is a token is taken without merging.
    pub(super) ignore_merges: bool,
}

/// The pre-tokenizer called `name`.
pub(super) fn named(name: &str) -> Result<PreTokenizer, TokenizerError> {
    let gpt2 = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    let steps = match name {
        "gpt-2" => gpt2.into(),
        "smollm" => sequence([Digits::new(true).into(), gpt2.into()]),
        "llama-bpe" | "llama3" | "llama-v3" => sequence([split(LLAMA3)?, bytes_only.into()]),
        "default" => {
            let [punctuation, words, numbers, threes] = DEFAULT;
            sequence([split(punctuation)?, split(words)?, split(numbers)?, split(threes)?, bytes_only.into()])
        }
        got => return Err(TokenizerError::UnknownPreTokenizer { got: got.to_owned(), supported: SUPPORTED }),
    };
    Ok(PreTokenizer { steps, ignore_merges: matches!(name, "llama-bpe" | "llama3" | "llama-v3") })
}

fn sequence<const N: usize>(steps: [PreTokenizerWrapper; N]) -> PreTokenizerWrapper {
    Sequence::new(steps.into()).into()
}

/// Cuts around each match and keeps the matches.
fn split(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map(Into::into)
        .map_err(|source| TokenizerError::Pipeline { step: "pre-tokenizer", source })
}
