//! The steps that a tokenizer.json is made of, checked before the crate `tokenizers` sees them.
//!
//! That crate panics over some steps, never ends over others, and lets a few bytes of a file ask for gigabytes. So a step is read only
//! if it is named here, with the fields that are named here and values that are harmless. The rest is refused by name.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::TokenizerError;

/// Steps of one component, all sequences together. Published files have at most a dozen.
const MAX_STEPS: usize = 64;
/// Longest text that a step puts in, in bytes. Published files put in one character.
const MAX_CONTENT_BYTES: usize = 16;
/// Longest pattern, in bytes. The longest published one has about 2 kB.
const MAX_PATTERN_BYTES: usize = 8 << 10;
/// `fancy-regex` writes `x{n}` out n times, and nested ones as often as their product says: so many bytes of a pattern, written out.
const MAX_WRITTEN_OUT: u64 = 16 << 10;

/// A part of a tokenizer.json that is a step, or a `Sequence` of steps.
pub(super) struct Component {
    /// Its name in the file.
    pub(super) field: &'static str,
    /// Where a `Sequence` has its steps.
    inner: &'static str,
    /// For errors: the steps that are read.
    expected: &'static str,
    /// The steps that are read, with their fields.
    kinds: &'static [(&'static str, &'static [&'static str])],
}

const BYTE_LEVEL: (&str, &[&str]) = ("ByteLevel", &["add_prefix_space", "trim_offsets", "use_regex"]);
const METASPACE: (&str, &[&str]) =
    ("Metaspace", &["replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"]);

pub(super) const NORMALIZER: Component = Component {
    field: "normalizer",
    inner: "normalizers",
    expected: "NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend or Replace",
    kinds: &[
        ("NFC", &[]),
        ("NFD", &[]),
        ("NFKC", &[]),
        ("NFKD", &[]),
        ("Lowercase", &[]),
        ("StripAccents", &[]),
        ("Strip", &["strip_left", "strip_right"]),
        ("Prepend", &["prepend"]),
        ("Replace", &["pattern", "content"]),
    ],
};

pub(super) const PRE_TOKENIZER: Component = Component {
    field: "pre_tokenizer",
    inner: "pretokenizers",
    expected: "ByteLevel, Metaspace, Split, Digits, Punctuation, Whitespace or WhitespaceSplit",
    kinds: &[
        BYTE_LEVEL,
        METASPACE,
        ("Split", &["pattern", "behavior", "invert"]),
        ("Digits", &["individual_digits"]),
        ("Punctuation", &["behavior"]),
        ("Whitespace", &[]),
        ("WhitespaceSplit", &[]),
    ],
};

pub(super) const POST_PROCESSOR: Component = Component {
    field: "post_processor",
    inner: "processors",
    expected: "ByteLevel, TemplateProcessing, RobertaProcessing or BertProcessing",
    kinds: &[
        BYTE_LEVEL,
        ("TemplateProcessing", &["single", "pair", "special_tokens"]),
        ("RobertaProcessing", &["sep", "cls", "trim_offsets", "add_prefix_space"]),
        ("BertProcessing", &["sep", "cls"]),
    ],
};

pub(super) const DECODER: Component = Component {
    field: "decoder",
    inner: "decoders",
    expected: "ByteLevel, or Metaspace, ByteFallback, Replace, Strip and Fuse",
    kinds: &[
        BYTE_LEVEL,
        METASPACE,
        ("ByteFallback", &[]),
        ("Fuse", &[]),
        ("Replace", &["pattern", "content"]),
        ("Strip", &["content", "start", "stop"]),
    ],
};

impl Component {
    /// The steps in order, sequences opened up, however deep they are nested. `null` has none.
    pub(super) fn steps<'v>(&self, value: &'v Value) -> Result<Vec<&'v Value>, TokenizerError> {
        let mut steps = Vec::new();
        let mut open = if value.is_null() { Vec::new() } else { vec![value] };
        while let Some(step) = open.pop() {
            let kind = step["type"].as_str();
            if kind == Some("Sequence") {
                self.check_fields(step, &[self.inner])?;
                let Some(inner) = step[self.inner].as_array() else {
                    return Err(self.refuse("a list of steps in a Sequence", &step[self.inner]));
                };
                open.extend(inner.iter().rev());
                continue;
            }
            let Some((_, fields)) = self.kinds.iter().find(|(name, _)| kind == Some(*name)) else {
                return Err(self.refuse(self.expected, &step["type"]));
            };
            self.check_fields(step, fields)?;
            steps.push(step);
            if steps.len() > MAX_STEPS {
                return Err(self.refuse("at most 64 steps", "more"));
            }
        }
        Ok(steps)
    }

    fn check_fields(&self, step: &Value, fields: &[&str]) -> Result<(), TokenizerError> {
        let names = step.as_object().into_iter().flat_map(|step| step.keys());
        match names.into_iter().find(|name| *name != "type" && !fields.contains(&name.as_str())) {
            Some(name) => Err(self.refuse("only fields that its steps have", format_args!("`{name}`"))),
            None => Ok(()),
        }
    }

    /// The step as the crate `tokenizers` has it.
    pub(super) fn read<T: DeserializeOwned>(&self, step: &Value) -> Result<T, TokenizerError> {
        serde_json::from_value(step.clone())
            .map_err(|error| self.refuse("a step as the crate `tokenizers` writes it", error))
    }

    /// Checks what a step looks for.
    pub(super) fn check_pattern(&self, step: &Value) -> Result<(), TokenizerError> {
        let pattern = &step["pattern"];
        let (regex, text) = (pattern["Regex"].as_str(), pattern["String"].as_str());
        let Some(length) = regex.or(text).map(str::len) else {
            return Err(self.refuse("a pattern that is a `String` or a `Regex`", pattern));
        };
        if length == 0 {
            return Err(self.refuse("a pattern", "an empty one"));
        }
        if length > MAX_PATTERN_BYTES {
            return Err(self.refuse("a pattern of at most 8192 bytes", format_args!("{length}")));
        }
        match regex.map(|regex| repetitions(regex).saturating_mul(length as u64)) {
            Some(got) if got > MAX_WRITTEN_OUT => {
                let expected = "a pattern of at most 16384 bytes with its repetitions written out";
                Err(self.refuse(expected, format_args!("{got}")))
            }
            _ => Ok(()),
        }
    }

    /// Checks what a step puts in.
    pub(super) fn check_content(&self, content: &Value) -> Result<(), TokenizerError> {
        match content.as_str().map(str::len) {
            Some(0..=MAX_CONTENT_BYTES) => Ok(()),
            Some(got) => Err(self.refuse("a content of at most 16 bytes", format_args!("{got}"))),
            None => Err(self.refuse("a content that is a text", content)),
        }
    }

    pub(super) fn refuse(&self, expected: &'static str, got: impl std::fmt::Display) -> TokenizerError {
        TokenizerError::UnsupportedField { field: self.field, expected, got: got.to_string() }
    }
}

/// How often the counted repetitions of a pattern repeat, were each nested in the others.
fn repetitions(pattern: &str) -> u64 {
    let count = |digits: &str| match digits.trim() {
        other if other.is_empty() || !other.bytes().all(|byte| byte.is_ascii_digit()) => 1,
        digits => digits.parse().unwrap_or(u64::MAX).max(1),
    };
    let counts = pattern
        .match_indices('{')
        .filter(|(place, _)| !names_a_character(&pattern[..*place]))
        .filter_map(|(place, _)| pattern[place + 1..].split('}').next()?.split(',').map(count).max());
    counts.fold(1, u64::saturating_mul)
}

/// Whether a brace after `before` belongs to it, as in `\p{L}` and `\x{20000}`.
fn names_a_character(before: &str) -> bool {
    let escape = before.strip_suffix(|last: char| last.is_ascii_alphabetic());
    // Of two backslashes the first one escapes the second.
    escape.is_some_and(|escape| escape.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_of_patterns() {
        for (pattern, expected) in [
            (r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+", 3),
            (" {2,}", 2),
            ("(a{100}){200}", 20_000),
            ("a{4294967296}", 4_294_967_296),
            ("a{,7}", 7),
            ("a{99999999999999999999}", u64::MAX),
            ("a{", 1),
            (r"[\x{3400}-\x{4DBF}\x{20000}]{1,3}", 3),
            (r"\\x{20000}", 20_000),
        ] {
            assert_eq!(repetitions(pattern), expected, "{pattern}");
        }
        assert_eq!(repetitions("a{4294967296}{4294967296}"), u64::MAX);
    }
}
