//! The thresholds of one kv head.

use std::ops::Range;

use crate::{check::check_thresholds, error::CoreError};

/// Thresholds of one kv head: fixed, or adjusted until a share of entries is zero.
///
/// ```
/// use deltallm_core::HeadThresholds;
///
/// let fixed = HeadThresholds::from(vec![0.5, 1.0]);
/// assert_eq!((fixed.start(), fixed.target()), (&[0.5, 1.0][..], None));
/// let led = HeadThresholds::with_target(vec![0.5, 1.0], 0.6);
/// assert_eq!(led.target(), Some(0.6));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct HeadThresholds {
    /// `[channels]`, in the units of the keys: where a target starts from.
    start: Vec<f32>,
    target: Option<f32>,
}

impl From<Vec<f32>> for HeadThresholds {
    /// Thresholds that stay as they are.
    fn from(start: Vec<f32>) -> Self {
        Self { start, target: None }
    }
}

impl HeadThresholds {
    /// How strongly a deviation from the target moves the thresholds: the logarithm of their common factor changes by
    /// this much for every token's worth of missing zeros. It grows with the tokens, because what is missing in the end
    /// is what the logarithm has to make up divided by the gain; more than this and the thresholds would swing.
    const GAIN: Range<f64> = 0.2..0.6;
    /// Tokens over which the gain grows.
    const GAIN_TOKENS: f64 = 512.0;
    /// The factor stays within `exp` of plus or minus this.
    const RANGE: f64 = 12.0;

    /// Thresholds that all grow and shrink by one factor until the share `zero_fraction` of all entries is zero.
    pub fn with_target(start: Vec<f32>, zero_fraction: f32) -> Self {
        Self { start, target: Some(zero_fraction) }
    }

    /// The zero fraction that is aimed at.
    pub fn target(&self) -> Option<f32> {
        self.target
    }

    /// The thresholds, `[channels]`; with a target, those it starts from.
    pub fn start(&self) -> &[f32] {
        &self.start
    }

    pub(crate) fn check(&self) -> Result<(), CoreError> {
        if self.start.is_empty() {
            return Err(CoreError::Channels { expected: 1, got: 0 });
        }
        check_thresholds(&self.start)?;
        match self.target {
            Some(got) if !(0.0..=1.0).contains(&got) => Err(CoreError::ZeroFraction { got }),
            _ => Ok(()),
        }
    }

    /// What the thresholds are multiplied by after `tokens` keys with `nonzeros` transmitted entries.
    ///
    /// An integral controller: the logarithm of the factor is proportional to the zeros that are missing so far. That sum
    /// follows from the two counts alone, so a cache that is cut back needs no history to be in the same state again.
    pub(crate) fn factor(&self, tokens: usize, nonzeros: usize) -> f32 {
        let Some(target) = self.target else { return 1.0 };
        let zeros = tokens as f64 - nonzeros as f64 / self.start.len() as f64;
        let missing = f64::from(target) * tokens as f64 - zeros;
        let grown = (tokens as f64 / Self::GAIN_TOKENS).min(1.0);
        let gain = Self::GAIN.start + (Self::GAIN.end - Self::GAIN.start) * grown;
        (gain * missing).clamp(-Self::RANGE, Self::RANGE).exp() as f32
    }
}
