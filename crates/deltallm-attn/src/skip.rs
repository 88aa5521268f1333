//! How far below the best score a value stops to matter.

use std::{fmt, str::FromStr};

use crate::AttentionError;
#[cfg(feature = "serde")]
use crate::json::NumberOrText;

/// The margin of value skipping (`docs/method.md`, equation 5), in nats.
///
/// A query that decides alone, as in decoding, adds [`ALONE`](SkipMargin::ALONE).
///
/// ```
/// use deltallm_attn::SkipMargin;
///
/// let margin: SkipMargin = "ln:3".parse()?;
/// assert!((margin.nats(1024, 32) - (1024_f32.ln() - 3.0)).abs() < 1e-6);
/// assert_eq!(margin.nats(1024, 1), margin.nats(1024, 32) + SkipMargin::ALONE);
/// assert_eq!(SkipMargin::Fixed(4.5).nats(1024, 1), 6.5);
/// assert_eq!(margin.nats(2, 32), SkipMargin::LEAST);
/// assert_eq!("ln:3:2.5".parse::<SkipMargin>()?.nats(2, 32), 2.5);
/// assert_eq!(margin, SkipMargin::length(3.0));
/// assert_eq!("4.5".parse::<SkipMargin>()?, SkipMargin::Fixed(4.5));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "NumberOrText", into = "String")
)]
#[non_exhaustive]
pub enum SkipMargin {
    /// The same at every length.
    Fixed(f32),
    /// `ln(n) - slack` for a query that sees `n` keys: then the mass a query can lose, relative to its best exact key, is at
    /// most `exp(slack)` at every length.
    Length {
        /// In nats; about 3.
        slack: f32,
        /// The smallest margin, [`LEAST`](SkipMargin::LEAST) where nothing else is known: in short contexts skipping gains little
        /// and costs most.
        least: f32,
    },
}

impl SkipMargin {
    /// The usual smallest margin of [`Length`](Self::Length).
    pub const LEAST: f32 = 3.0;

    /// A margin that costs little where nothing is known about the model: a value that is skipped weighs at most e⁻⁶, a
    /// four-hundredth, of the best exact one, and in decoding e⁻⁸, a three-thousandth. What it cost on four models is in
    /// `docs/results/models.md`.
    pub const CAUTIOUS: Self = Self::Fixed(6.0);

    /// What is added where one query decides alone, nats. In a tile most values are kept for the sake of some other query;
    /// without them the same margin would skip far more, and cost more (`docs/results/default.md`).
    pub const ALONE: f32 = 2.0;

    /// [`Length`](Self::Length) with the usual smallest margin.
    pub fn length(slack: f32) -> Self {
        Self::Length { slack, least: Self::LEAST }
    }

    /// The margin for a query that sees `keys` keys, in a tile of `queries` queries.
    pub fn nats(self, keys: usize, queries: usize) -> f32 {
        let alone = if queries == 1 { Self::ALONE } else { 0.0 };
        alone
            + match self {
                Self::Fixed(margin) => margin,
                Self::Length { slack, least } => ((keys as f32).ln() - slack).max(least),
            }
    }

    pub(crate) fn check(self) -> Result<(), AttentionError> {
        let positive = |nats: f32| nats.is_finite() && nats > 0.0;
        let (expected, got) = match self {
            Self::Fixed(margin) if !positive(margin) => ("a finite number of nats > 0", margin),
            Self::Length { slack, .. } if !slack.is_finite() => {
                ("a slack that is a finite number of nats", slack)
            }
            Self::Length { least, .. } if !positive(least) => {
                ("a least margin of finitely many nats > 0", least)
            }
            _ => return Ok(()),
        };
        Err(AttentionError::Setting { setting: "skip margin", expected, got: f64::from(got) })
    }
}

/// `4.5`, or `ln:3` for `ln(n) - 3` and `ln:3:2.5` for that and at least 2.5.
impl fmt::Display for SkipMargin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(margin) => write!(f, "{margin}"),
            Self::Length { slack, least } if *least == Self::LEAST => write!(f, "ln:{slack}"),
            Self::Length { slack, least } => write!(f, "ln:{slack}:{least}"),
        }
    }
}

impl FromStr for SkipMargin {
    type Err = AttentionError;

    fn from_str(text: &str) -> Result<Self, AttentionError> {
        let expected = "a number of nats > 0, or ln:SLACK or ln:SLACK:LEAST for ln(keys) - SLACK";
        let number = |text: &str| text.parse().ok();
        let margin =
            match text.strip_prefix("ln:").map(|numbers| numbers.split_once(':').unwrap_or((numbers, "3"))) {
                Some((slack, least)) => {
                    number(slack).zip(number(least)).map(|(slack, least)| Self::Length { slack, least })
                }
                None => number(text).map(Self::Fixed),
            };
        let margin = margin.filter(|margin| margin.check().is_ok());
        margin.ok_or_else(|| AttentionError::Name { what: "skip margin", expected, got: text.to_owned() })
    }
}

#[cfg(feature = "serde")]
impl TryFrom<NumberOrText> for SkipMargin {
    type Error = AttentionError;

    fn try_from(text: NumberOrText) -> Result<Self, AttentionError> {
        text.to_string().parse()
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
        for text in ["4.5", "ln:2.75", "ln:-1", "ln:4:1.5"] {
            assert_eq!(text.parse::<SkipMargin>().unwrap().to_string(), text);
        }
        for bad in [
            "", "off", "0", "-4", "inf", "nan", "ln:", "ln:nan", "ln", "4 nats", "ln:3:", "ln:3:0",
            "ln:3:2:1",
        ] {
            let error = bad.parse::<SkipMargin>().unwrap_err().to_string();
            assert!(error.contains("expected a number of nats"), "{error}");
        }
    }
}
