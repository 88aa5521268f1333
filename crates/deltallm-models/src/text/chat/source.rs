//! A template's source on its way to the compiler: what `transformers` allows beyond minijinja's Jinja is written in that,
//! operands are marked, and what would take the compiler too deep or too long is refused.
//!
//! The compiler calls itself for every operator of an expression and for every `elif`, and looks at the operators of an
//! expression again for each of them. Brackets and blocks it counts itself.

use super::error::ChatError;
use super::operands;
use super::words::{is_word, string_length};

/// Most words and signs in a tag. Published templates have less than 200.
const MAX_TAG_TOKENS: usize = 1000;

/// Most `elif` in a template. Published ones have less than 50.
const MAX_ELIFS: usize = 1000;

/// The source as the compiler is to read it.
///
/// # Errors
/// [`ChatError::TagTooLong`] or [`ChatError::TooManyBranches`].
pub(super) fn prepare(source: &str) -> Result<String, ChatError> {
    // In Jinja every line end is a line feed.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut prepared = String::with_capacity(source.len());
    let (mut rest, mut brackets, mut elifs) = (source.as_str(), 0, 0);
    while let Some(start) = tag_start(rest) {
        let (text, tag) = rest.split_at(start);
        prepared.push_str(text);
        let end = match literal_end(tag) {
            Some(end) => {
                prepared.push_str(&tag[..end]);
                end
            }
            None => {
                let tag = Tag::read(tag, &mut brackets);
                let line = || 1 + prepared.matches('\n').count();
                if tag.tokens > MAX_TAG_TOKENS {
                    return Err(ChatError::TagTooLong {
                        line: line(),
                        limit: MAX_TAG_TOKENS,
                        got: tag.tokens,
                    });
                }
                elifs += usize::from(tag.name == "elif");
                if elifs > MAX_ELIFS {
                    return Err(ChatError::TooManyBranches { line: line(), limit: MAX_ELIFS });
                }
                prepared.push_str(&operands::mark(&[tag.before, tag.known_name(), tag.after].concat()));
                tag.before.len() + tag.name.len() + tag.after.len()
            }
        };
        rest = &tag[end..];
    }
    prepared.push_str(rest);
    Ok(prepared)
}

/// Where the next `{{`, `{%` or `{#` is.
fn tag_start(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))
}

/// Where a comment or a raw block ends, if the tag is one. What has no end goes to the end of the source.
fn literal_end(tag: &str) -> Option<usize> {
    let after_sign = |at: usize| at + usize::from(tag[at..].starts_with(['-', '+']));
    let end_of = |from: usize, end: &str| tag[from..].find(end).map_or(tag.len(), |at| from + at + end.len());
    if tag.starts_with("{#") {
        return Some(end_of(after_sign(2), "#}"));
    }
    if !tag.starts_with("{%") {
        return None;
    }
    let mut at = after_sign(2);
    at += bare_tag(&tag[at..], "raw")?;
    loop {
        let end = end_of(at, "{%");
        if end == tag.len() {
            return Some(end);
        }
        let name = after_sign(end);
        match bare_tag(&tag[name..], "endraw") {
            Some(length) => return Some(name + length),
            None => at = end,
        }
    }
}

/// The length of ` NAME %}`, if the text begins with it.
fn bare_tag(text: &str, name: &str) -> Option<usize> {
    let rest = text.trim_ascii_start().strip_prefix(name)?.trim_ascii_start();
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some(text.len() - rest.len())
}

/// A tag or an expression, cut at the word that it begins with.
struct Tag<'a> {
    before: &'a str,
    name: &'a str,
    after: &'a str,
    /// Words, strings and signs.
    tokens: usize,
}

impl<'a> Tag<'a> {
    /// Reads up to the end of the tag. `brackets` are those open, of earlier tags too: within them no tag ends.
    fn read(text: &'a str, brackets: &mut i64) -> Self {
        let bytes = text.as_bytes();
        let close: &[u8] = if bytes[1] == b'{' { b"}}" } else { b"%}" };
        let mut at = 2 + usize::from(matches!(bytes.get(2), Some(b'-' | b'+')));
        let (mut name, mut tokens) = (at..at, 0);
        while let Some(&byte) = bytes.get(at) {
            let sign = usize::from(matches!(byte, b'-' | b'+'));
            if *brackets == 0 && bytes[at + sign..].starts_with(close) {
                at += sign + close.len();
                break;
            }
            let start = at;
            at += match byte {
                b'\'' | b'"' => string_length(&bytes[at..]),
                _ if is_word(byte) => bytes[at..].iter().take_while(|byte| is_word(**byte)).count(),
                _ => 1,
            };
            match byte {
                b'(' | b'[' | b'{' => *brackets += 1,
                b')' | b']' | b'}' => *brackets -= 1,
                _ => {}
            }
            if byte.is_ascii_whitespace() {
                continue;
            }
            if tokens == 0 && is_word(byte) {
                name = start..at;
            }
            tokens += 1;
        }
        Self { before: &text[..name.start], name: &text[name.clone()], after: &text[name.end..at], tokens }
    }

    /// The name in minijinja's Jinja. `transformers` marks what the assistant says with `generation`, for
    /// training; the text is the same, and what is set within stays within.
    fn known_name(&self) -> &'a str {
        match self.name {
            "generation" if self.is_bare_block() => "with",
            "endgeneration" if self.is_bare_block() => "endwith",
            name => name,
        }
    }

    fn is_bare_block(&self) -> bool {
        self.before.starts_with("{%") && self.tokens == 1
    }
}
