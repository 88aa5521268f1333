//! Rotary position embedding: base frequency and scaling.

use std::f64::consts::TAU;

use super::ConfigError;
use super::sizes::{checked_size, positive};

/// Rotary position embedding (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// Change of the frequencies for contexts longer than the first training's.
    pub scaling: RopeScaling,
}

/// How the frequencies are changed for long contexts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length of the first training.
        original_context: usize,
    },
    /// A divisor for each frequency, which is how GGUF files store the llama3 rule (`rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// The frequency of each of the `head_dim / 2` pairs of channels in radians per position, scaling included.
    ///
    /// # Errors
    /// [`ConfigError::Size`] for heads of 0 channels or more than any model has.
    pub fn frequencies(&self, head_dim: usize) -> Result<Vec<f32>, ConfigError> {
        checked_size("head size", head_dim as u64)?;
        let theta = f64::from(self.theta);
        let frequencies = (0..head_dim / 2).map(|pair| {
            let frequency = theta.powf(-((2 * pair) as f64) / head_dim as f64);
            self.scaling.apply(pair, frequency) as f32
        });
        Ok(frequencies.collect())
    }

    pub(super) fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        positive("RoPE theta", self.theta)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("RoPE factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => {
                positive("RoPE factor", *factor)?;
                positive("RoPE low_freq_factor", *low)?;
                positive("RoPE high_freq_factor", *high)?;
                checked_size("RoPE original context", *original_context as u64)?;
                if low < high { Ok(()) } else { Err(ConfigError::RopeBand { low: *low, high: *high }) }
            }
            RopeScaling::Factors(factors) if factors.len() != head_dim / 2 => {
                Err(ConfigError::RopeFactors { expected: head_dim / 2, got: factors.len() })
            }
            RopeScaling::Factors(factors) => {
                factors.iter().try_for_each(|&factor| positive("RoPE factor", factor))
            }
        }
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / f64::from(*factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                // Rotations over the original context: 1 keeps the frequency, 0 divides it by the factor.
                let rotations = *original_context as f64 * frequency / TAU;
                let keep = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                keep * frequency + (1.0 - keep) * frequency / f64::from(*factor)
            }
            // `validate` has checked that there is one for each pair.
            Self::Factors(factors) => frequency / factors.get(pair).map_or(1.0, |&factor| f64::from(factor)),
        }
    }
}
