//! A context and its continuation as tokens, by the rules of lm-evaluation-harness.

use anyhow::ensure;

use crate::LoadedModel;

/// A text and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What the model reads.
    pub context: String,
    /// What is scored, without the delimiter.
    pub continuation: String,
}

/// The tokens of a pair: the last `continuation` of `tokens` are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
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
    /// # Errors
    /// When the continuation has no tokens of its own, or more than `most`.
    pub fn new(model: &LoadedModel, pair: &Pair, delimiter: &str, most: usize) -> anyhow::Result<Self> {
        let context = pair.context.trim_end();
        let spaces = &pair.context[context.len()..];
        let mut head = model.tokenizer.encode(context, true)?;
        let mut tokens =
            model.tokenizer.encode(&format!("{context}{spaces}{delimiter}{}", pair.continuation), true)?;
        if head.is_empty() {
            let start = model.tokenizer.bos().or(model.tokenizer.eos_ids().first().copied());
            head.extend(start);
            tokens.splice(0..0, start);
        }
        ensure!(!head.is_empty(), "expected a context of at least one token, got an empty one");
        let continuation = tokens.len().saturating_sub(head.len());
        ensure!(
            continuation > 0,
            "expected a continuation with tokens of its own, got {:?}, which adds none to its context",
            pair.continuation
        );
        ensure!(
            continuation <= most,
            "expected a continuation of at most {most} tokens, the context, got {continuation}"
        );
        // The last token is only predicted, never read.
        let surplus = tokens.len().saturating_sub(most + 1);
        tokens.drain(..surplus);
        Ok(Self { tokens, continuation, truncated: surplus > 0 })
    }

    /// What the model reads: everything but the last token.
    pub fn input(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }

    /// The continuation's tokens, predicted by the last rows of the input.
    pub fn targets(&self) -> &[u32] {
        &self.tokens[self.tokens.len() - self.continuation..]
    }

    /// Tokens of context and continuation.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: a request has at least two tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whether the context was too long and lost its beginning.
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(context: &str, continuation: &str) -> Pair {
        Pair { context: context.into(), continuation: continuation.into() }
    }

    fn text(model: &LoadedModel, tokens: &[u32]) -> String {
        model.tokenizer.decode(tokens).unwrap()
    }

    #[test]
    fn the_continuation_is_what_follows_the_context() {
        let model = LoadedModel::open(None).unwrap();
        let request = Request::new(&model, &pair("Once upon a", "time"), " ", 100).unwrap();
        assert_eq!(text(&model, request.targets()), " time");
        assert_eq!(text(&model, &request.tokens), "Once upon a time");
        assert_eq!(request.input(), &request.tokens[..request.len() - 1]);
        assert!(!request.truncated());
    }

    #[test]
    fn spaces_at_the_end_of_the_context_go_with_the_continuation() {
        let model = LoadedModel::open(None).unwrap();
        let spaced = Request::new(&model, &pair("Once upon a ", "time"), "", 100).unwrap();
        assert_eq!(spaced, Request::new(&model, &pair("Once upon a", "time"), " ", 100).unwrap());
        let line = Request::new(&model, &pair("Once upon a time.\n", "The end"), " ", 100).unwrap();
        assert_eq!(text(&model, line.targets()), "\n The end");
    }

    #[test]
    fn a_long_context_loses_its_beginning() {
        let model = LoadedModel::open(None).unwrap();
        let long = pair("the king and the queen and the king and the queen", "laughed");
        let whole = Request::new(&model, &long, " ", 100).unwrap();
        let cut = Request::new(&model, &long, " ", 5).unwrap();
        assert!(cut.truncated());
        assert_eq!(cut.input().len(), 5);
        assert_eq!(cut.tokens, whole.tokens[whole.len() - 6..]);
        assert_eq!(cut.targets(), whole.targets());
        let most = whole.len() - 1;
        assert!(!Request::new(&model, &long, " ", most).unwrap().truncated());
        assert!(Request::new(&model, &pair("a", &"king ".repeat(20)), " ", 5).is_err());
    }

    #[test]
    fn a_continuation_needs_tokens_and_a_context_gets_one() {
        let model = LoadedModel::open(None).unwrap();
        assert!(Request::new(&model, &pair("Once", ""), "", 100).is_err());
        match Request::new(&model, &pair("", "Once"), "", 100) {
            Ok(request) => assert_eq!(request.len(), request.targets().len() + 1),
            Err(error) => assert!(model.tokenizer.bos().is_none(), "{error}"),
        }
    }
}
