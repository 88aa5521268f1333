//! Regular expressions that a tokenizer.json brings along, and how long they may take.

use std::cell::Cell;
use std::time::{Duration, Instant};

use fancy_regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Offsets;
use tokenizers::pattern::Pattern;

use super::TokenizerError;
use super::components::Component;

/// Steps back that one match may take, which is what `fancy-regex` allows anyway. Fewer would refuse long texts: to look for a match that
/// does not come takes a step or two for every character.
const MAX_BACKTRACKING: usize = 1_000_000;

/// Time that the expressions may take over a text, and more of it for each byte. Those of published files take less than a hundredth.
const MIN_TIME: Duration = Duration::from_secs(2);
const TIME_OF_BYTE: Duration = Duration::from_micros(10);

/// What the expressions may still do for one text. Steps cannot be counted: one match takes few of them and a long time each, another one
/// many short ones, and a hostile file has either at every place of a text.
pub(super) struct Effort {
    limit: Duration,
    spent: Cell<Duration>,
}

impl Effort {
    pub(super) fn of(text: &str) -> Self {
        let bytes = u32::try_from(text.len()).unwrap_or(u32::MAX);
        Self { limit: MIN_TIME + TIME_OF_BYTE * bytes, spent: Cell::new(Duration::ZERO) }
    }

    fn spend(&self, time: Duration) -> Result<(), TokenizerError> {
        self.spent.set(self.spent.get() + time);
        match self.spent.get() > self.limit {
            true => Err(TokenizerError::ExpressionTooSlow { limit: self.limit }),
            false => Ok(()),
        }
    }
}

/// What a step looks for.
#[derive(Debug)]
pub(super) struct Expression(Regex);

#[derive(Deserialize)]
enum Source {
    String(String),
    Regex(String),
}

impl Expression {
    /// Reads `pattern` of a step.
    pub(super) fn from_json(component: &Component, step: &Value) -> Result<Self, TokenizerError> {
        component.check_pattern(step)?;
        let pattern = match component.read(&step["pattern"])? {
            Source::String(text) => fancy_regex::escape(&text).into_owned(),
            Source::Regex(regex) => regex,
        };
        let regex = RegexBuilder::new(&pattern).backtrack_limit(MAX_BACKTRACKING).build();
        let regex =
            regex.map_err(|error| component.refuse("an expression that `fancy-regex` reads", error))?;
        Ok(Self(regex))
    }

    /// The parts of `text`, and whether each is a match.
    pub(super) fn parts(&self, text: &str, effort: &Effort) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let (mut parts, mut end) = (Vec::new(), 0);
        let mut matches = self.0.find_iter(text);
        loop {
            let start = Instant::now();
            let found = matches.next();
            effort.spend(start.elapsed())?;
            let Some(found) = found.transpose()? else { break };
            if end != found.start() {
                parts.push(((end, found.start()), false));
            }
            parts.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != text.len() {
            parts.push(((end, text.len()), false));
        }
        Ok(parts)
    }
}

/// An expression with what it may do, as the crate `tokenizers` takes them.
pub(super) struct Timed<'a>(pub(super) &'a Expression, pub(super) &'a Effort);

impl Pattern for Timed<'_> {
    fn find_matches(&self, inside: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        self.0.parts(inside, self.1)
    }
}

/// The error of a step, which may be one of this crate's on its way through `tokenizers`.
pub(super) fn failed(step: &'static str) -> impl Fn(tokenizers::Error) -> TokenizerError {
    move |source| match source.downcast::<TokenizerError>() {
        Ok(error) => *error,
        Err(source) => TokenizerError::Pipeline { step, source },
    }
}
