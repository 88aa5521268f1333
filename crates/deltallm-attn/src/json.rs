//! What several settings need to be read from JSON.

use std::fmt;

/// A setting with a form of its own, such as `64` or `"block:0.05"`.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected a number or a text")]
pub(crate) enum NumberOrText {
    Integer(u64),
    Number(f64),
    Text(String),
}

/// The text; a number as JSON has it, so that 64.0 is not taken for a number of keys.
impl fmt::Display for NumberOrText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => write!(f, "{number}"),
            Self::Number(number) => write!(f, "{number:?}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}
