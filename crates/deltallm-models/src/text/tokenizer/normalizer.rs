//! What is done to a text before it is cut: spaces written otherwise, Unicode brought into one form.

use std::borrow::Cow;

use serde_json::Value;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

use super::TokenizerError;
use super::components::NORMALIZER;

/// A text may become so many times longer: NFKC makes eleven of one (U+FDFA).
const MAX_GROWTH: usize = 32;
/// For short texts.
const MIN_LIMIT_BYTES: usize = 4 << 10;

/// Steps that are done one after the other. Without any, texts stay as they are.
#[derive(Debug, Default)]
pub(super) struct Normalizer(Vec<NormalizerWrapper>);

impl Normalizer {
    pub(super) fn new(steps: Vec<NormalizerWrapper>) -> Self {
        Self(steps)
    }

    /// Reads `normalizer` of a tokenizer.json.
    pub(super) fn from_json(value: &Value) -> Result<Self, TokenizerError> {
        let steps = NORMALIZER.steps(value)?.into_iter().map(|step| {
            match step["type"].as_str() {
                Some("Prepend") => NORMALIZER.check_content(&step["prepend"])?,
                Some("Replace") => {
                    NORMALIZER.check_pattern(step)?;
                    NORMALIZER.check_content(&step["content"])?;
                }
                _ => {}
            }
            NORMALIZER.read(step)
        });
        Ok(Self(steps.collect::<Result<_, _>>()?))
    }

    /// The text after all steps.
    ///
    /// Each begins with a text of its own: where characters came from is of no use here, and the crate `tokenizers` loses track of it (and
    /// panics) when something is put in at the very start.
    pub(super) fn apply<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, TokenizerError> {
        let limit = text.len().saturating_mul(MAX_GROWTH).max(MIN_LIMIT_BYTES);
        let mut result = Cow::Borrowed(text);
        for step in &self.0 {
            let mut normalized = NormalizedString::from(&*result);
            step.normalize(&mut normalized)
                .map_err(|source| TokenizerError::Pipeline { step: "normalizer", source })?;
            let got = normalized.len();
            if got > limit {
                return Err(TokenizerError::NormalizedTooLong { limit, got });
            }
            result = Cow::Owned(normalized.get().to_owned());
        }
        Ok(result)
    }
}
