//! What is done to a text before it is cut: spaces written otherwise, Unicode brought into one form.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

use super::TokenizerError;
use super::components::NORMALIZER;
use super::expression::{Effort, Expression, failed};

/// A text may become so many times longer: NFKC makes eleven of one (U+FDFA).
const MAX_GROWTH: usize = 32;
/// For short texts.
const MIN_LIMIT_BYTES: usize = 4 << 10;

/// Steps that are done one after the other. Without any, texts stay as they are.
#[derive(Debug, Default)]
pub(super) struct Normalizer(Vec<Step>);

#[derive(Debug)]
enum Step {
    /// `Replace` of the crate `tokenizers` leaves the rest of a text as it is where its expression takes too long. Here that is an error.
    Replace(Expression, String),
    Other(NormalizerWrapper),
}

impl Step {
    fn from_json(step: &Value) -> Result<Self, TokenizerError> {
        match step["type"].as_str() {
            Some("Replace") => {
                NORMALIZER.check_content(&step["content"])?;
                let content = NORMALIZER.read(&step["content"])?;
                return Ok(Self::Replace(Expression::from_json(&NORMALIZER, step)?, content));
            }
            Some("Prepend") => NORMALIZER.check_content(&step["prepend"])?,
            _ => {}
        }
        NORMALIZER.read(step).map(Self::Other)
    }

    fn apply(&self, text: &str, effort: &Effort) -> Result<String, TokenizerError> {
        match self {
            Self::Replace(expression, content) => {
                let parts = expression.parts(text, effort).map_err(failed("normalizer"))?;
                let part = |((start, end), is_match): ((usize, usize), bool)| {
                    if is_match { content } else { &text[start..end] }
                };
                Ok(parts.into_iter().map(part).collect())
            }
            Self::Other(step) => {
                let mut normalized = NormalizedString::from(text);
                step.normalize(&mut normalized).map_err(failed("normalizer"))?;
                Ok(normalized.get().to_owned())
            }
        }
    }
}

impl Normalizer {
    pub(super) fn new(steps: Vec<NormalizerWrapper>) -> Self {
        Self(steps.into_iter().map(Step::Other).collect())
    }

    /// Reads `normalizer` of a tokenizer.json.
    pub(super) fn from_json(value: &Value) -> Result<Self, TokenizerError> {
        let steps = NORMALIZER.steps(value)?.into_iter().map(Step::from_json);
        Ok(Self(steps.collect::<Result<_, _>>()?))
    }

    /// The text after all steps.
    ///
    /// Each begins with a text of its own: where characters came from is of no use here, and the crate `tokenizers` loses track of it (and
    /// panics) when something is put in at the very start.
    pub(super) fn apply<'t>(&self, text: &'t str, effort: &Effort) -> Result<Cow<'t, str>, TokenizerError> {
        let limit = text.len().saturating_mul(MAX_GROWTH).max(MIN_LIMIT_BYTES);
        let mut result = Cow::Borrowed(text);
        for step in &self.0 {
            let normalized = step.apply(&result, effort)?;
            let got = normalized.len();
            if got > limit {
                return Err(TokenizerError::NormalizedTooLong { limit, got });
            }
            result = Cow::Owned(normalized);
        }
        Ok(result)
    }
}
