//! Which keys a query attends to at all.

use std::{fmt, str::FromStr};

use crate::AttentionError;

/// Which keys a query attends to. What the latest query and later ones do not attend to is dropped from the cache, so a layer that looks back 512
/// tokens holds no more than these and the page that they begin in, whatever the context. (An exact window that is wider holds the keys that it
/// is wide.)
///
/// Not to be confused with the [window](crate::ExactWindow) of hybrid attention, which says what of it is attended *exactly*.
///
/// ```
/// use deltallm_attn::Mask;
///
/// assert_eq!([0, 511, 512, 600].map(|position| Mask::SlidingWindow(512).first_key(position)), [0, 0, 1, 89]);
/// assert_eq!([0, 511, 512, 600].map(|position| Mask::Chunked(512).first_key(position)), [0, 0, 512, 512]);
/// assert_eq!("sliding:512".parse::<Mask>()?, Mask::SlidingWindow(512));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
#[non_exhaustive]
pub enum Mask {
    /// All tokens up to the query's own.
    #[default]
    Causal,
    /// The latest tokens, the query's own included: this many, at least one (Mistral, and most layers of Gemma).
    SlidingWindow(usize),
    /// Those of the query's own chunk, up to itself. Chunks have this many tokens, at least one (Llama 4).
    Chunked(usize),
    /// All tokens in the cache, and those that come in the same call, before and after the query: encoders, and prefixes that are
    /// brought in one call.
    Bidirectional,
}

impl Mask {
    /// The first key that the query at `position` attends to.
    pub fn first_key(self, position: usize) -> usize {
        match self {
            Self::Causal | Self::Bidirectional => 0,
            Self::SlidingWindow(tokens) => position.saturating_add(1).saturating_sub(tokens),
            Self::Chunked(tokens) => position / tokens.max(1) * tokens,
        }
    }

    /// The most keys that a query attends to; `None` where there is no limit.
    pub fn most_keys(self) -> Option<usize> {
        match self {
            Self::Causal | Self::Bidirectional => None,
            Self::SlidingWindow(tokens) | Self::Chunked(tokens) => Some(tokens),
        }
    }

    /// The end of the keys that the query at `position` attends to, when the cache has `tokens` tokens with those of the call.
    pub(crate) fn end(self, position: usize, tokens: usize) -> usize {
        if self == Self::Bidirectional { tokens } else { position + 1 }
    }

    /// The first position whose query finds all keys that it attends to in a cache whose tokens before `first` have been dropped.
    fn first_position(self, first: usize) -> usize {
        match self {
            _ if first == 0 => 0,
            Self::Chunked(tokens) => first.checked_next_multiple_of(tokens.max(1)).unwrap_or(usize::MAX),
            // What attends to all tokens finds them nowhere.
            _ => first.saturating_add(self.most_keys().unwrap_or(usize::MAX)).saturating_sub(1),
        }
    }

    /// Checks that such a cache can be cut back to `len` tokens: that queries after them find what they attend to.
    pub(crate) fn check_cut(self, len: usize, first: usize) -> Result<(), AttentionError> {
        // The last token must be there too: what follows is coded by it.
        let least = if first == 0 { 0 } else { self.first_position(first).max(first.saturating_add(1)) };
        if len == 0 || len >= least {
            Ok(())
        } else {
            Err(AttentionError::Dropped { expected: least, got: len })
        }
    }

    /// The position of the first of the last `queries` tokens of such a cache, which has `len`.
    ///
    /// # Errors
    /// If it has not so many, or has dropped what they attend to.
    pub(crate) fn first_query(
        self,
        queries: usize,
        len: usize,
        first: usize,
    ) -> Result<usize, AttentionError> {
        let held = len.saturating_sub(self.first_position(first));
        if queries <= held {
            return Ok(len - queries);
        }
        let dimension = "tokens (without keys, at most those in the cache that find all that they attend to)";
        Err(AttentionError::Shape { input: "q", dimension, expected: held, got: queries })
    }

    pub(crate) fn check(self) -> Result<(), AttentionError> {
        match self.most_keys() {
            Some(0) => {
                Err(AttentionError::Setting { setting: "mask", expected: "at least 1 token", got: 0.0 })
            }
            _ => Ok(()),
        }
    }
}

/// `causal`, `sliding:512`, `chunked:8192` or `bidirectional`.
impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Causal => f.write_str("causal"),
            Self::SlidingWindow(tokens) => write!(f, "sliding:{tokens}"),
            Self::Chunked(tokens) => write!(f, "chunked:{tokens}"),
            Self::Bidirectional => f.write_str("bidirectional"),
        }
    }
}

impl FromStr for Mask {
    type Err = AttentionError;

    fn from_str(text: &str) -> Result<Self, AttentionError> {
        let mask = match text.split_once(':') {
            None if text == "causal" => Some(Self::Causal),
            None if text == "bidirectional" => Some(Self::Bidirectional),
            Some(("sliding", tokens)) => tokens.parse().ok().map(Self::SlidingWindow),
            Some(("chunked", tokens)) => tokens.parse().ok().map(Self::Chunked),
            _ => None,
        };
        mask.filter(|mask| mask.check().is_ok()).ok_or_else(|| AttentionError::Name {
            what: "mask",
            expected: "causal, sliding:TOKENS, chunked:TOKENS (at least 1) or bidirectional",
            got: text.to_owned(),
        })
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for Mask {
    type Error = AttentionError;

    fn try_from(text: String) -> Result<Self, AttentionError> {
        text.parse()
    }
}

#[cfg(feature = "serde")]
impl From<Mask> for String {
    fn from(mask: Mask) -> Self {
        mask.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_read_back_what_they_write() {
        for mask in [Mask::Causal, Mask::SlidingWindow(512), Mask::Chunked(1), Mask::Bidirectional] {
            assert_eq!(mask.to_string().parse(), Ok(mask));
        }
        for bad in ["", "sliding", "sliding:", "sliding:0", "chunked:-1", "causal:1", "Causal", "window:5"] {
            assert!(bad.parse::<Mask>().is_err(), "{bad}");
        }
    }
}
