//! The step `Split` of a tokenizer.json: cuts at the matches of an expression that the file brings along.

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::pattern::Invert;
use tokenizers::{PreTokenizedString, SplitDelimiterBehavior};

use super::TokenizerError;
use super::components::PRE_TOKENIZER;

/// Steps back that one match may take, which is what `fancy-regex` allows anyway. Fewer would refuse long texts: to look for a match that
/// does not come takes a step or two for every character.
const MAX_BACKTRACKING: usize = 1_000_000;

/// `Split` of the crate `tokenizers`, which leaves the rest of a text uncut where its expression takes too long. Here that is an error.
#[derive(Debug)]
pub(super) struct Split {
    regex: Regex,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

#[derive(Deserialize)]
struct Fields {
    pattern: Pattern,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

#[derive(Deserialize)]
enum Pattern {
    String(String),
    Regex(String),
}

impl Split {
    pub(super) fn from_json(step: &Value) -> Result<Self, TokenizerError> {
        PRE_TOKENIZER.check_pattern(step)?;
        let Fields { pattern, behavior, invert } = PRE_TOKENIZER.read(step)?;
        let pattern = match pattern {
            Pattern::String(text) => fancy_regex::escape(&text).into_owned(),
            Pattern::Regex(regex) => regex,
        };
        let regex = RegexBuilder::new(&pattern).backtrack_limit(MAX_BACKTRACKING).build();
        let regex =
            regex.map_err(|error| PRE_TOKENIZER.refuse("an expression that `fancy-regex` reads", error))?;
        Ok(Self { regex, behavior, invert })
    }

    pub(super) fn cut(&self, words: &mut PreTokenizedString) -> tokenizers::Result<()> {
        words.split(|_, text| match self.invert {
            true => text.split(Invert(&self.regex), self.behavior),
            false => text.split(&self.regex, self.behavior),
        })
    }
}
