//! Pre-tokenizers: how text is cut into the pieces within which byte-level BPE merges.
//!
//! GGUF names them (`tokenizer.ggml.pre`) and leaves the rules to the reader. The rules here are those of the
//! original tokenizer.json files, except `default`, which is llama.cpp's.

use serde_json::{Value, json};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{self, SplitPattern};
use tokenizers::{PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::TokenizerError;
use super::components::PRE_TOKENIZER;
use super::expression::{Effort, failed};
use super::normalizer::Normalizer;
use super::split::Split;

/// The names understood, aliases included.
const SUPPORTED: &[&str] = &[
    "smollm",
    "llama-bpe",
    "llama3",
    "llama-v3",
    "smaug-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "tekken",
    "default",
    "gpt-2",
];

/// Llama 3: contractions, words with one leading symbol, up to three digits, punctuation, line ends, spaces.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Qwen 2: the same with digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Mistral's from Nemo on: words end before a capital letter, digits one by one, slashes with the punctuation before them.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's fallback: punctuation apart, GPT-2's rule, numbers apart, and then in threes.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];

/// What cuts texts, step by step. Without any steps, a text is one piece.
#[derive(Debug, Default)]
pub(super) struct PreTokenizers {
    steps: Vec<Step>,
    /// The steps for pieces of a text that are not its start, where they differ: a Metaspace may put a space in front of a text only.
    later: Option<Vec<Step>>,
}

#[derive(Debug)]
enum Step {
    Split(Split),
    Other(PreTokenizerWrapper),
}

impl Step {
    fn from_json(step: &Value) -> Result<Self, TokenizerError> {
        match step["type"].as_str() {
            Some("Split") => Split::from_json(step).map(Self::Split),
            _ => PRE_TOKENIZER.read(step).map(Self::Other),
        }
    }
}

impl PreTokenizers {
    /// Reads `pre_tokenizer` of a tokenizer.json.
    pub(super) fn from_json(value: &Value) -> Result<Self, TokenizerError> {
        let steps = PRE_TOKENIZER.steps(value)?;
        for kind in ["ByteLevel", "Metaspace"] {
            // Each makes a text longer; together they would double it again and again.
            if steps.iter().filter(|step| step["type"] == kind).count() > 1 {
                return Err(PRE_TOKENIZER.refuse("at most one", format_args!("more than one {kind}")));
            }
        }
        let read = |steps: &[&Value]| -> Result<Vec<_>, TokenizerError> {
            steps.iter().map(|step| Step::from_json(step)).collect()
        };
        let is_first = |step: &&Value| step["type"] == "Metaspace" && step["prepend_scheme"] == "first";
        let later = match steps.iter().position(is_first) {
            Some(index) => {
                let mut never = steps[index].clone();
                never["prepend_scheme"] = json!("never");
                let mut later = steps.clone();
                later[index] = &never;
                Some(read(&later)?)
            }
            None => None,
        };
        Ok(Self { steps: read(&steps)?, later })
    }

    /// Cuts `words`; `at_start` says whether they are the start of the whole text.
    pub(super) fn cut(
        &self,
        words: &mut PreTokenizedString,
        at_start: bool,
        effort: &Effort,
    ) -> Result<(), TokenizerError> {
        let later = self.later.as_ref().filter(|_| !at_start);
        for step in later.unwrap_or(&self.steps) {
            let cut = match step {
                Step::Split(split) => split.cut(words, effort),
                Step::Other(step) => step.pre_tokenize(words),
            };
            cut.map_err(failed("pre-tokenizer"))?;
        }
        Ok(())
    }
}

impl From<PreTokenizerWrapper> for PreTokenizers {
    fn from(step: PreTokenizerWrapper) -> Self {
        Self { steps: vec![Step::Other(step)], later: None }
    }
}

/// A pre-tokenizer by its name, and what the name implies.
pub(super) struct PreTokenizer {
    pub(super) steps: PreTokenizerWrapper,
    /// What is done to a text before. llama.cpp leaves it out.
    pub(super) normalizer: Normalizer,
    /// Whether a whole pre-token that is a token is taken without merging.
    pub(super) ignore_merges: bool,
    /// Whether a text gets a BOS in front where the file does not say.
    pub(super) add_bos: bool,
}

/// The pre-tokenizer called `name`.
pub(super) fn named(name: &str) -> Result<PreTokenizer, TokenizerError> {
    let gpt2 = ByteLevel::new(false, true, true);
    let bytes_only = ByteLevel::new(false, true, false);
    let steps = match name {
        "gpt-2" => gpt2.into(),
        "smollm" => sequence([Digits::new(true).into(), gpt2.into()]),
        // SmolLM3's files have the last name.
        "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => sequence([split(LLAMA3)?, bytes_only.into()]),
        "qwen2" | "deepseek-r1-qwen" => sequence([split(QWEN2)?, bytes_only.into()]),
        "tekken" => sequence([split(TEKKEN)?, bytes_only.into()]),
        "default" => {
            let [punctuation, words, numbers, threes] = DEFAULT;
            sequence([split(punctuation)?, split(words)?, split(numbers)?, split(threes)?, bytes_only.into()])
        }
        got => return Err(TokenizerError::UnknownPreTokenizer { got: got.to_owned(), supported: SUPPORTED }),
    };
    let normalizer = match name {
        "qwen2" => Normalizer::new(vec![NFC.into()]),
        _ => Normalizer::default(),
    };
    let add_bos = matches!(name, "llama-bpe" | "llama3" | "llama-v3" | "tekken");
    // These vocabularies have words that no merge makes.
    Ok(PreTokenizer { steps, normalizer, ignore_merges: add_bos || name == "smaug-bpe", add_bos })
}

fn sequence<const N: usize>(steps: [PreTokenizerWrapper; N]) -> PreTokenizerWrapper {
    Sequence::new(steps.into()).into()
}

/// Cuts around each match and keeps the matches.
fn split(pattern: &str) -> Result<PreTokenizerWrapper, TokenizerError> {
    split::Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
        .map(Into::into)
        .map_err(|source| TokenizerError::Pipeline { step: "pre-tokenizer", source })
}
