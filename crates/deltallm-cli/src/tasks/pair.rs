//! A context and its continuation as tokens, by the rules of lm-evaluation-harness.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::LoadedModel;

/// A text and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the model reads.
    pub context: String,
    /// What is scored, without the delimiter.
    pub continuation: String,
}

/// Why a pair has nothing that can be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unscorable {
    /// The continuation has no tokens of its own: one token spans the joint, and no other follows.
    NoTokens,
    /// The continuation alone exceeds the context.
    TooLong,
    /// There are no tokens to go on from, nor one that begins a text.
    NoContext,
}

impl Unscorable {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoTokens => "no_tokens",
            Self::TooLong => "too_long",
            Self::NoContext => "no_context",
        }
    }
}

impl fmt::Display for Unscorable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTokens => "the continuation has no token of its own, it shares one with its context",
            Self::TooLong => "the continuation is longer than the context",
            Self::NoContext => "the context is empty, and the model has no token that begins a text",
        })
    }
}

/// The tokens of a pair: the last `continuation` of `tokens` are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    tokens: Vec<u32>,
    continuation: usize,
    truncated: bool,
}

impl Request {
    /// Encodes `context` and `delimiter + continuation` as one text, so that tokens may span the joint; the
    /// continuation's tokens are those after as many as the context alone has. White space at the end of the context
    /// counts as the beginning of the continuation, since tokens carry the space before a word. A context without
    /// tokens is replaced by the token that begins a text (or, without one, the token that ends one).
    ///
    /// What exceeds `most` tokens of input is cut off from the left.
    ///
    /// Texts that end with a token of their own (`add_eos_token`) do so in neither of the two: it would be taken for the continuation's.
    ///
    /// # Errors
    /// When the tokenizer fails. A pair that cannot be scored is no error, but says why.
    pub(crate) fn new(
        model: &LoadedModel,
        pair: &Pair,
        delimiter: &str,
        most: usize,
    ) -> anyhow::Result<Result<Self, Unscorable>> {
        let context = pair.context.trim_end();
        let spaces = &pair.context[context.len()..];
        let mut head = model.tokenizer.encode_beginning(context)?;
        let whole = format!("{context}{spaces}{delimiter}{}", pair.continuation);
        let mut tokens = model.tokenizer.encode_beginning(&whole)?;
        if head.is_empty() {
            let start = model.tokenizer.bos().or(model.tokenizer.eos_ids().first().copied());
            head.extend(start);
            tokens.splice(0..0, start);
        }
        let continuation = tokens.len().saturating_sub(head.len());
        if head.is_empty() {
            return Ok(Err(Unscorable::NoContext));
        } else if continuation == 0 {
            return Ok(Err(Unscorable::NoTokens));
        } else if continuation > most {
            return Ok(Err(Unscorable::TooLong));
        }
        // The last token is only predicted, never read.
        let surplus = tokens.len().saturating_sub(most + 1);
        tokens.drain(..surplus);
        Ok(Ok(Self { tokens, continuation, truncated: surplus > 0 }))
    }

    /// What the model reads: everything but the last token.
    pub(crate) fn input(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The continuation's tokens, predicted by the last rows of the input.
    pub(crate) fn targets(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.continuation..]
    }

    /// Tokens of context and continuation.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the context was too long and lost its beginning.
    pub(crate) fn truncated(&self) -> bool {
        self.truncated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(context: &str, continuation: &str) -> Pair {
        Pair { context: context.into(), continuation: continuation.into() }
    }

    fn request(model: &LoadedModel, pair: &Pair, delimiter: &str, most: usize) -> Request {
        Request::new(model, pair, delimiter, most).unwrap().unwrap()
    }

    fn text(model: &LoadedModel, tokens: &[u32]) -> String {
        model.tokenizer.decode(tokens).unwrap()
    }

    #[test]
    fn the_continuation_is_what_follows_the_context() {
        let model = LoadedModel::open(None).unwrap();
        let request = request(&model, &pair("Once upon a", "time"), " ", 100);
        assert_eq!(text(&model, request.targets()), " time");
        assert_eq!(text(&model, &request.tokens), "Once upon a time");
        assert_eq!(request.input(), &request.tokens[..request.len() - 1]);
        assert!(!request.truncated());
    }

    #[test]
    fn spaces_at_the_end_of_the_context_go_with_the_continuation() {
        let model = LoadedModel::open(None).unwrap();
        let spaced = request(&model, &pair("Once upon a ", "time"), "", 100);
        assert_eq!(spaced, request(&model, &pair("Once upon a", "time"), " ", 100));
        let line = request(&model, &pair("Once upon a time.\n", "The end"), " ", 100);
        assert_eq!(text(&model, line.targets()), "\n The end");
    }

    #[test]
    fn a_long_context_loses_its_beginning() {
        let model = LoadedModel::open(None).unwrap();
        let long = pair("the king and the queen and the king and the queen", "laughed");
        let whole = request(&model, &long, " ", 100);
        let cut = request(&model, &long, " ", 5);
        assert!(cut.truncated());
        assert_eq!(cut.input().len(), 5);
        assert_eq!(cut.tokens, whole.tokens[whole.len() - 6..]);
        assert_eq!(cut.targets(), whole.targets());
        let most = whole.len() - 1;
        assert!(!request(&model, &long, " ", most).truncated());
        let unscorable = Request::new(&model, &pair("a", &"king ".repeat(20)), " ", 5).unwrap();
        assert_eq!(unscorable, Err(Unscorable::TooLong));
    }

    #[test]
    fn a_continuation_needs_tokens_and_a_context_gets_one() {
        let model = LoadedModel::open(None).unwrap();
        let new =
            |context, continuation| Request::new(&model, &pair(context, continuation), "", 100).unwrap();
        for (context, continuation) in [("Once", ""), ("Once upon a ti", "me")] {
            assert_eq!(new(context, continuation), Err(Unscorable::NoTokens));
        }
        match new("", "Once") {
            Ok(request) => assert_eq!(request.len(), request.targets().len() + 1),
            Err(why) => assert!(model.tokenizer.bos().is_none() && why == Unscorable::NoContext, "{why}"),
        }
    }
}
