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
/// let margin: SkipMargin = "0.6ln+0.5".parse()?;
/// assert!((margin.nats(4096, 32) - (0.5 + 0.6 * 4096_f32.ln())).abs() < 1e-6);
/// assert_eq!(margin.nats(4096, 1), margin.nats(4096, 32) + SkipMargin::ALONE);
/// assert_eq!(margin.nats(2, 32), SkipMargin::LEAST);
/// assert_eq!(margin, SkipMargin::length(0.5, 0.6));
/// assert_eq!("0.6ln+0.5:2.5".parse::<SkipMargin>()?.nats(2, 32), 2.5);
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
    /// `base + slope ln(n)` for a query that sees `n` keys. More keys mean more that can be lost; with [`SLOPE`](SkipMargin::SLOPE)
    /// skipping costs about as much at every length.
    Length {
        /// In nats.
        base: f32,
        /// Nats for each unit of `ln(n)`.
        slope: f32,
        /// The smallest margin, [`LEAST`](SkipMargin::LEAST) where nothing else is known: in short contexts skipping gains little
        /// and costs most.
        least: f32,
    },
}

impl SkipMargin {
    /// The usual smallest margin of [`Length`](Self::Length).
    pub const LEAST: f32 = 3.5;

    /// How a margin has to grow with the length for skipping to cost as much at every length (`docs/results/calibration.md`).
    pub const SLOPE: f32 = 0.6;

    /// A margin that costs little where nothing is known about the model: a value that is skipped weighs at most e^-6.5, a
    /// six-hundredth, of the best exact one, and in decoding e^-8, a three-thousandth. What it cost on four models is in
    /// `docs/results/models.md`.
    pub const CAUTIOUS: Self = Self::Fixed(6.5);

    /// What is added where one query decides alone, nats. In a tile most values are kept for the sake of some other query;
    /// without them the same margin would skip far more, and cost more (`docs/results/default.md`).
    pub const ALONE: f32 = 1.5;

    /// [`Length`](Self::Length) with the usual smallest margin.
    pub fn length(base: f32, slope: f32) -> Self {
        Self::Length { base, slope, least: Self::LEAST }
    }

    /// The margin for a query that sees `keys` keys, in a tile of `queries` queries.
    pub fn nats(self, keys: usize, queries: usize) -> f32 {
        let alone = if queries == 1 { Self::ALONE } else { 0.0 };
        alone
            + match self {
                Self::Fixed(margin) => margin,
                Self::Length { base, slope, least } => (base + slope * (keys as f32).ln()).max(least),
            }
    }

    pub(crate) fn check(self) -> Result<(), AttentionError> {
        let positive = |nats: f32| nats.is_finite() && nats > 0.0;
        let (expected, got) = match self {
            Self::Fixed(margin) if !positive(margin) => ("a finite number of nats > 0", margin),
            Self::Length { base, .. } if !base.is_finite() => ("a base of finitely many nats", base),
            Self::Length { slope, .. } if !(slope.is_finite() && slope >= 0.0) => {
                ("a slope that is a finite number >= 0", slope)
            }
            Self::Length { least, .. } if !positive(least) => {
                ("a least margin of finitely many nats > 0", least)
            }
            _ => return Ok(()),
        };
        Err(AttentionError::Setting { setting: "skip margin", expected, got: f64::from(got) })
    }
}

/// `4.5`, or `0.6ln+0.5` for `0.6 ln(n) + 0.5`, and `0.6ln+0.5:2.5` for that and at least 2.5.
impl fmt::Display for SkipMargin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(margin) => write!(f, "{margin}"),
            Self::Length { base, slope, least } if *least == Self::LEAST => write!(f, "{slope}ln{base:+}"),
            Self::Length { base, slope, least } => write!(f, "{slope}ln{base:+}:{least}"),
        }
    }
}

/// What is [written](#impl-Display-for-SkipMargin), and the older `ln:3[:LEAST]` for `1ln-3[:LEAST]`.
impl FromStr for SkipMargin {
    type Err = AttentionError;

    fn from_str(text: &str) -> Result<Self, AttentionError> {
        let margin = fixed(text).or_else(|| by_length(text)).filter(|margin| margin.check().is_ok());
        let expected = "a number of nats > 0, or Aln+B or Aln+B:LEAST for A ln(keys) + B";
        margin.ok_or_else(|| AttentionError::Name { what: "skip margin", expected, got: text.to_owned() })
    }
}

fn fixed(text: &str) -> Option<SkipMargin> {
    text.parse().ok().map(SkipMargin::Fixed)
}

fn by_length(text: &str) -> Option<SkipMargin> {
    let number = |text: &str| text.parse::<f32>().ok();
    let (law, least) = text.rsplit_once(':').map_or((text, None), |(law, least)| (law, Some(least)));
    // The older form has a colon of its own.
    let (law, least) = if law == "ln" { (text, None) } else { (law, least) };
    let (slope, base) = match law.strip_prefix("ln:") {
        Some(slack) => (1.0, 0.0 - number(slack)?),
        None => {
            let (slope, base) = law.split_once("ln")?;
            (number(slope)?, number(base).filter(|_| base.starts_with(['+', '-']))?)
        }
    };
    let least = least.map_or(Some(SkipMargin::LEAST), number)?;
    Some(SkipMargin::Length { base, slope, least })
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
        for text in ["4.5", "0.6ln+2.75", "1ln-1", "0.5ln+0.25:1.5"] {
            assert_eq!(text.parse::<SkipMargin>().unwrap().to_string(), text);
        }
        assert_eq!("ln:2.75".parse::<SkipMargin>().unwrap(), SkipMargin::length(-2.75, 1.0));
        assert_eq!("ln:-1:2".parse::<SkipMargin>().unwrap().to_string(), "1ln+1:2");
        for bad in [
            "",
            "off",
            "0",
            "-4",
            "inf",
            "nan",
            "ln",
            "1ln",
            "+ln",
            "ln+1",
            "1ln1",
            "1ln+",
            "1ln++1",
            "1ln+-1",
            "nanln+1",
            "infln+1",
            "1ln+nan",
            "-1ln+1",
            "4 nats",
            "1ln+1:",
            "1ln+1:0",
            "1ln+1:2:1",
            "ln:",
            "ln:nan",
            "ln:3:0",
            "ln:3:2:1",
        ] {
            let error = bad.parse::<SkipMargin>().unwrap_err().to_string();
            assert!(error.contains("expected a number of nats"), "{error}");
        }
    }
}
