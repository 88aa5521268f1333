//! Tokens that are matched in text as a whole: control tokens, where they are wanted, and user-defined ones.

use std::borrow::Cow;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};

use super::TokenizerError;

/// Stands before the spelling of a control token that is text and not that token. A noncharacter (Unicode
/// 23.7), so no text that is meant to be exchanged has it; one that has it all the same has it escaped too.
pub(super) const ESCAPE: char = '\u{FDD0}';

/// Longest texts of all special tokens together: what finds them takes some fifty times as many bytes. Published vocabularies have up
/// to 3 MB (tokens of speech), most some kilobytes.
const MAX_SPECIAL_BYTES: usize = 8 << 20;

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

/// A piece of a text that has been cut around special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Text(Range<usize>),
    /// A special token's id.
    Token(u32),
}

/// Finds special tokens, leftmost first and longest of those.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    tokens: Vec<SpecialToken>,
    /// Matches every token.
    all: Option<AhoCorasick>,
    /// Matches the tokens that are not control tokens; the ones before `text_tokens`.
    text: Option<AhoCorasick>,
    /// Matches the control tokens.
    control: Option<AhoCorasick>,
    text_tokens: usize,
}

impl SpecialTokens {
    pub(super) fn new(mut tokens: Vec<SpecialToken>) -> Result<Self, TokenizerError> {
        tokens.retain(|token| !token.content.is_empty());
        let got = tokens.iter().map(|token| token.content.len()).sum();
        if got > MAX_SPECIAL_BYTES {
            return Err(TokenizerError::SpecialTokensTooLong { limit: MAX_SPECIAL_BYTES, got });
        }
        tokens.sort_by_key(|token| token.control);
        let text_tokens = tokens.iter().take_while(|token| !token.control).count();
        let all = matcher(&tokens)?;
        let text = matcher(&tokens[..text_tokens])?;
        let control = matcher(&tokens[text_tokens..])?;
        Ok(Self { tokens, all, text, control, text_tokens })
    }

    /// The control token that `text` spells.
    pub(super) fn control_id(&self, text: &str) -> Option<u32> {
        self.tokens[self.text_tokens..].iter().find(|token| token.content == text).map(|token| token.id)
    }

    /// Cuts `source` around special tokens; around control tokens only if asked for.
    pub(super) fn split(&self, source: &str, control: bool) -> Vec<Part> {
        let matcher = if control { &self.all } else { &self.text };
        let find = |from| matcher.as_ref()?.find(Input::new(source).range(from..));
        let mut parts = Vec::new();
        let (mut end, mut from) = (0, 0);
        while let Some(found) = find(from) {
            let token = &self.tokens[found.pattern().as_usize()];
            let before = &source[end..found.start()];
            if token.control && is_escaped(before) {
                from = next_character(source, found.start());
                continue;
            }
            let start = end + if token.lstrip { before.trim_end().len() } else { before.len() };
            let after = &source[found.end()..];
            if end < start {
                parts.push(Part::Text(end..start));
            }
            parts.push(Part::Token(token.id));
            end = found.end() + if token.rstrip { after.len() - after.trim_start().len() } else { 0 };
            from = end;
        }
        if end < source.len() {
            parts.push(Part::Text(end..source.len()));
        }
        parts
    }

    /// `text` with [`ESCAPE`] in front of every control token that it spells, overlapping ones included, and of every [`ESCAPE`].
    pub(super) fn escape<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut places: Vec<usize> = text.match_indices(ESCAPE).map(|(place, _)| place).collect();
        let find = |from| self.control.as_ref()?.find(Input::new(text).range(from..));
        let mut from = 0;
        while let Some(found) = find(from) {
            places.push(found.start());
            from = next_character(text, found.start());
        }
        if places.is_empty() {
            return Cow::Borrowed(text);
        }
        places.sort_unstable();
        places.dedup();
        let mut escaped = String::with_capacity(text.len() + places.len() * ESCAPE.len_utf8());
        let mut copied = 0;
        for place in places {
            escaped.push_str(&text[copied..place]);
            escaped.push(ESCAPE);
            copied = place;
        }
        escaped.push_str(&text[copied..]);
        Cow::Owned(escaped)
    }
}

/// `text` without what [`SpecialTokens::escape`] has put in: of two [`ESCAPE`]s one stays.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return Cow::Borrowed(text);
    }
    let mut escaped = false;
    let mut keep = |character| {
        escaped = character == ESCAPE && !escaped;
        !escaped
    };
    Cow::Owned(text.chars().filter(|&character| keep(character)).collect())
}

/// Whether `before` ends in an [`ESCAPE`] that is not escaped itself.
fn is_escaped(before: &str) -> bool {
    before.chars().rev().take_while(|&character| character == ESCAPE).count() % 2 == 1
}

fn next_character(text: &str, place: usize) -> usize {
    place + text[place..].chars().next().map_or(1, char::len_utf8)
}

fn matcher(tokens: &[SpecialToken]) -> Result<Option<AhoCorasick>, TokenizerError> {
    if tokens.is_empty() {
        return Ok(None);
    }
    // Of few tokens it would build a table of 256 entries for each of their bytes.
    AhoCorasick::builder()
        .kind(Some(AhoCorasickKind::ContiguousNFA))
        .match_kind(MatchKind::LeftmostLongest)
        .build(tokens.iter().map(|token| &token.content))
        .map(Some)
        .map_err(|source| TokenizerError::Pipeline { step: "special tokens", source: source.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32, content: &str, control: bool) -> SpecialToken {
        SpecialToken { id, content: content.to_owned(), control, lstrip: false, rstrip: false }
    }

    #[test]
    fn of_tokens_that_begin_alike_the_longest_is_found_in_whatever_order_they_come() {
        for tokens in [["ab", "abc"], ["abc", "ab"]] {
            let tokens: Vec<_> = (0..).zip(tokens).map(|(id, content)| token(id, content, false)).collect();
            let longest = u32::from(tokens[1].content == "abc");
            let found = SpecialTokens::new(tokens).unwrap().split("xabcab", false);
            assert_eq!(found, [Part::Text(0..1), Part::Token(longest), Part::Token(1 - longest)]);
        }
    }

    #[test]
    fn white_space_that_a_token_takes_is_of_any_kind() {
        let stripping = SpecialToken { lstrip: true, rstrip: true, ..token(7, "<s>", true) };
        let found = SpecialTokens::new(vec![stripping]).unwrap().split("a \n\t<s>\r\n\u{2003} b", true);
        assert_eq!(found, [Part::Text(0..1), Part::Token(7), Part::Text(13..14)]);
    }

    #[test]
    fn a_token_that_begins_within_an_escaped_one_is_found() {
        let tokens = SpecialTokens::new(vec![token(7, "aba", true)]).unwrap();
        let source = format!("{ESCAPE}ababa");
        let inner = ESCAPE.len_utf8() + 2;
        assert_eq!(tokens.split(&source, true), [Part::Text(0..inner), Part::Token(7)]);
    }
}
