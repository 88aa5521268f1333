//! How far below the best score a value stops to matter.

use std::{fmt, str::FromStr};

use crate::AttentionError;

/// The margin of value skipping (`docs/method.md`, equation 5), in nats.
///
/// ```
/// use deltallm_attn::SkipMargin;
///
/// let margin: SkipMargin = "ln:3".parse()?;
/// assert!((margin.nats(1024, 32) - (1024_f32.ln() - 3.0)).abs() < 1e-6);
/// assert_eq!(margin.nats(1024, 1), margin.nats(1024, 32) + SkipMargin::ALONE);
/// assert_eq!(margin.nats(2, 32), SkipMargin::LEAST);
/// assert_eq!("4.5".parse::<SkipMargin>()?, SkipMargin::Fixed(4.5));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
#[non_exhaustive]
pub enum SkipMargin {
    /// The same at every length.
    Fixed(f32),
    /// `ln(n) - slack` for a query that sees `n` keys: then the mass a query can lose, relative to its best exact key, is at
    /// most `exp(slack)` at every length. A query that decides alone, as in decoding, adds [`ALONE`](SkipMargin::ALONE).
    Length {
        /// In nats; about 3.
        slack: f32,
    },
}

impl SkipMargin {
    /// The smallest margin of [`Length`](Self::Length): in short contexts skipping gains little and costs most.
    pub const LEAST: f32 = 3.0;

    /// What [`Length`](Self::Length) adds where one query decides alone. In a tile most values are kept for the sake of some
    /// other query; without them the same margin would skip far more.
    pub const ALONE: f32 = 2.0;

    /// The margin for a query that sees `keys` keys, in a tile of `queries` queries.
    pub fn nats(self, keys: usize, queries: usize) -> f32 {
        match self {
            Self::Fixed(margin) => margin,
            Self::Length { slack } => {
                let alone = if queries == 1 { Self::ALONE } else { 0.0 };
                ((keys as f32).ln() - slack).max(Self::LEAST) + alone
            }
        }
    }

    pub(crate) fn check(self) -> Result<(), AttentionError> {
        let (expected, got, right) = match self {
            Self::Fixed(margin) => {
                ("a finite number of nats > 0", margin, margin.is_finite() && margin > 0.0)
            }
            Self::Length { slack } => ("a slack that is a finite number of nats", slack, slack.is_finite()),
        };
        match right {
            true => Ok(()),
            false => Err(AttentionError::Setting { setting: "skip margin", expected, got: f64::from(got) }),
        }
    }
}

/// `4.5`, or `ln:3` for `ln(n) - 3`.
impl fmt::Display for SkipMargin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(margin) => write!(f, "{margin}"),
            Self::Length { slack } => write!(f, "ln:{slack}"),
        }
    }
}

impl FromStr for SkipMargin {
    type Err = AttentionError;

    fn from_str(text: &str) -> Result<Self, AttentionError> {
        let expected = "a number of nats > 0, or ln:SLACK for ln(keys) - SLACK";
        let margin = match text.strip_prefix("ln:") {
            Some(slack) => slack.parse().map(|slack| Self::Length { slack }),
            None => text.parse().map(Self::Fixed),
        };
        let margin = margin.ok().filter(|margin| margin.check().is_ok());
        margin.ok_or_else(|| AttentionError::Name { what: "skip margin", expected, got: text.to_owned() })
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for SkipMargin {
    type Error = AttentionError;

    fn try_from(text: String) -> Result<Self, AttentionError> {
        text.parse()
    }
}

#[cfg(feature = "serde")]
impl From<SkipMargin> for String {
    fn from(margin: SkipMargin) -> Self {
        margin.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_read_back_what_they_write() {
        for text in ["4.5", "ln:2.75", "ln:-1"] {
            assert_eq!(text.parse::<SkipMargin>().unwrap().to_string(), text);
        }
        for bad in ["", "off", "0", "-4", "inf", "nan", "ln:", "ln:nan", "ln", "4 nats"] {
            let error = bad.parse::<SkipMargin>().unwrap_err().to_string();
            assert!(error.contains("expected a number of nats"), "{error}");
        }
    }
}
