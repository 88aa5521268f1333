//! Tokens that are matched in text as a whole: control tokens, where they are wanted, and user-defined ones.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use tokenizers::normalizer::Range;
use tokenizers::{NormalizedString, Token};

use super::TokenizerError;

/// Stands before the spelling of a control token that is text and not that token. A noncharacter (Unicode
/// 23.7), so no text that is meant to be exchanged has it.
pub(super) const ESCAPE: char = '\u{FDD0}';

/// A token to find in text.
#[derive(Debug, Clone)]
pub(super) struct SpecialToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// Matched only in trusted text.
    pub(super) control: bool,
    /// The match takes in the white space to its left.
    pub(super) lstrip: bool,
    /// The match takes in the white space to its right.
    pub(super) rstrip: bool,
}

/// Finds special tokens, leftmost first and longest of those.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    /// Matches every token.
    all: Option<AhoCorasick>,
    /// Matches the tokens that are not control tokens; the ones before `text_tokens`.
    text: Option<AhoCorasick>,
    text_tokens: usize,
}

impl SpecialTokens {
    pub(super) fn new(mut tokens: Vec<SpecialToken>) -> Result<Self, TokenizerError> {
        tokens.retain(|token| !token.content.is_empty());
        tokens.sort_by_key(|token| token.control);
        let text_tokens = tokens.iter().take_while(|token| !token.control).count();
        let all = matcher(&tokens)?;
        let text = matcher(&tokens[..text_tokens])?;
        Ok(Self { tokens, all, text, text_tokens })
    }

    /// The control token that `text` spells.
    pub(super) fn control_id(&self, text: &str) -> Option<u32> {
        self.tokens[self.text_tokens..].iter().find(|token| token.content == text).map(|token| token.id)
    }

    /// Cuts `text` around special tokens and gives these their ids; control tokens only if asked for.
    pub(super) fn split(
        &self,
        text: NormalizedString,
        control: bool,
    ) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
        let Some(matcher) = (if control { &self.all } else { &self.text }) else {
            return vec![(text, None)];
        };
        let source = text.get();
        let mut parts = Vec::new();
        let mut push = |range: std::ops::Range<usize>, tokens| {
            // The ranges come from matches of UTF-8 patterns in `source`, so slicing cannot fail.
            if let Some(part) = text.slice(Range::Normalized(range)) {
                parts.push((part, tokens));
            }
        };
        let mut end = 0;
        for found in matcher.find_iter(source) {
            let token = &self.tokens[found.pattern().as_usize()];
            if found.start() < end {
                continue; // White space that the token before took in.
            }
            let before = &source[end..found.start()];
            if control && before.ends_with(ESCAPE) {
                continue;
            }
            let start = end + if token.lstrip { before.trim_end().len() } else { before.len() };
            let after = &source[found.end()..];
            let stop = found.end() + if token.rstrip { after.len() - after.trim_start().len() } else { 0 };
            if start > end {
                push(end..start, None);
            }
            push(start..stop, Some(vec![Token::new(token.id, token.content.clone(), (0, stop - start))]));
            end = stop;
        }
        if end < source.len() {
            push(end..source.len(), None);
        }
        parts
    }

    /// `text` with [`ESCAPE`] in front of every control token that it spells, overlapping ones included.
    pub(super) fn escape<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Some(matcher) = &self.all else { return Cow::Borrowed(text) };
        let mut escaped = String::new();
        let (mut copied, mut from) = (0, 0);
        while let Some(found) = matcher.find(Input::new(text).range(from..)) {
            if self.tokens[found.pattern().as_usize()].control {
                escaped.push_str(&text[copied..found.start()]);
                escaped.push(ESCAPE);
                copied = found.start();
            }
            from = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
        }
        if escaped.is_empty() {
            return Cow::Borrowed(text);
        }
        escaped.push_str(&text[copied..]);
        Cow::Owned(escaped)
    }
}

fn matcher(tokens: &[SpecialToken]) -> Result<Option<AhoCorasick>, TokenizerError> {
    if tokens.is_empty() {
        return Ok(None);
    }
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(tokens.iter().map(|token| &token.content))
        .map(Some)
        .map_err(|source| TokenizerError::Pipeline { step: "special tokens", source: source.into() })
}
