//! The step `Split` of a tokenizer.json: cuts at the matches of an expression that the file brings along.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::pattern::Invert;
use tokenizers::{PreTokenizedString, SplitDelimiterBehavior};

use super::TokenizerError;
use super::components::PRE_TOKENIZER;
use super::expression::{Effort, Expression, Timed};

/// `Split` of the crate `tokenizers`, which leaves the rest of a text uncut where its expression takes too long. Here that is an error.
#[derive(Debug)]
pub(super) struct Split {
    expression: Expression,
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

#[derive(Deserialize)]
struct Fields {
    behavior: SplitDelimiterBehavior,
    invert: bool,
}

impl Split {
    pub(super) fn from_json(step: &Value) -> Result<Self, TokenizerError> {
        let expression = Expression::from_json(&PRE_TOKENIZER, step)?;
        let Fields { behavior, invert } = PRE_TOKENIZER.read(step)?;
        Ok(Self { expression, behavior, invert })
    }

    pub(super) fn cut(&self, words: &mut PreTokenizedString, effort: &Effort) -> tokenizers::Result<()> {
        let pattern = || Timed(&self.expression, effort);
        words.split(|_, text| match self.invert {
            true => text.split(Invert(pattern()), self.behavior),
            false => text.split(pattern(), self.behavior),
        })
    }
}
