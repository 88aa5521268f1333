//! Rotary position embedding: base frequency and scaling.

use std::f64::consts::TAU;

use super::ConfigError;
use super::sizes::{checked_head_size, checked_size, positive};

/// Rotary position embedding (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub theta: f32,
    /// Channels of a head that are rotated, the first ones; `None` for all.
    pub rotated_channels: Option<usize>,
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
    /// YaRN (Peng et al., arXiv 2309.00071): slow pairs are divided by `factor`, fast ones kept, a ramp between, and what is
    /// rotated is multiplied with `attention_factor`.
    Yarn {
        /// The divisor of slow pairs.
        factor: f32,
        /// Context length of the first training.
        original_context: usize,
        /// Pairs that turn more often than this in the original context are kept.
        beta_fast: f32,
        /// Pairs that turn less often than this are divided.
        beta_slow: f32,
        /// What queries and keys are multiplied with.
        attention_factor: f32,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
    },
    /// NTK by length: up to the model's context length nothing is changed. Beyond it every further token changes all
    /// frequencies, which a cache of rotated keys cannot follow, so that a model with this scaling ends there
    /// ([`ModelError::ContextFull`](crate::ModelError::ContextFull)).
    Dynamic,
    /// A divisor for each frequency, which is how GGUF files store the llama3 rule (`rope_freqs.weight`).
    Factors(Vec<f32>),
}

impl RopeConfig {
    /// The frequency of each rotated pair of channels (`head_dim / 2` of them, if not fewer are) in radians per position,
    /// scaling included.
    ///
    /// # Errors
    /// [`ConfigError::Size`] for heads of 0 channels or more than any model has.
    pub fn frequencies(&self, head_dim: usize) -> Result<Vec<f32>, ConfigError> {
        checked_head_size(head_dim as u64)?;
        let channels = self.channels(head_dim);
        let theta = f64::from(self.theta);
        let frequencies = (0..channels / 2).map(|pair| {
            let frequency = theta.powf(-((2 * pair) as f64) / channels as f64);
            self.scaling.apply(pair, frequency, channels, theta) as f32
        });
        Ok(frequencies.collect())
    }

    /// What rotated channels are multiplied with; 1 unless the scaling has a factor for it.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Channels of a head that are rotated.
    fn channels(&self, head_dim: usize) -> usize {
        self.rotated_channels.map_or(head_dim, |channels| channels.min(head_dim))
    }

    pub(super) fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        positive("RoPE theta", self.theta)?;
        if let Some(got) = self.rotated_channels
            && (got == 0 || got > head_dim || !got.is_multiple_of(2))
        {
            return Err(ConfigError::RotatedChannels { head_dim, got });
        }
        let channels = self.channels(head_dim);
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic => Ok(()),
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
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate: _,
            } => {
                positive("RoPE factor", *factor)?;
                positive("RoPE beta_fast", *beta_fast)?;
                positive("RoPE beta_slow", *beta_slow)?;
                positive("RoPE attention_factor", *attention_factor)?;
                positive("logarithm of RoPE theta", self.theta.ln())?;
                checked_size("RoPE original context", *original_context as u64).map(drop)
            }
            RopeScaling::Factors(factors) if factors.len() != channels / 2 => {
                Err(ConfigError::RopeFactors { expected: channels / 2, got: factors.len() })
            }
            RopeScaling::Factors(factors) => {
                factors.iter().try_for_each(|&factor| positive("RoPE factor", factor))
            }
        }
    }
}

/// `attention_factor` of YaRN where a file does not say it.
pub(super) fn yarn_attention_factor(factor: f32, multiplier: f32) -> f32 {
    if factor <= 1.0 { 1.0 } else { 0.1 * multiplier * factor.ln() + 1.0 }
}

impl RopeScaling {
    /// How many positions it is made for, in a model of `context_length`: YaRN is there to reach further than the first training did.
    pub(super) fn reach(&self, context_length: u64) -> u64 {
        match *self {
            Self::Yarn { factor, original_context, .. } => {
                context_length.max((original_context as f64 * f64::from(factor)) as u64)
            }
            _ => context_length,
        }
    }

    /// What becomes of a pair's frequency, of `channels` rotated channels.
    fn apply(&self, pair: usize, frequency: f64, channels: usize, theta: f64) -> f64 {
        match self {
            Self::None | Self::Dynamic => frequency,
            Self::Linear { factor } => frequency / f64::from(*factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (low, high) = (f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                // Rotations over the original context: 1 keeps the frequency, 0 divides it by the factor.
                let rotations = *original_context as f64 * frequency / TAU;
                let keep = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                keep * frequency + (1.0 - keep) * frequency / f64::from(*factor)
            }
            Self::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                let (last, context) = (channels as f64 - 1.0, *original_context as f64);
                // The pair that turns so often over the original context.
                let pair_of = |turns: &f32| {
                    channels as f64 * (context / (f64::from(*turns) * TAU)).ln() / (2.0 * theta.ln())
                };
                let (low, high) = (pair_of(beta_fast), pair_of(beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(last));
                let width = if low == high { 0.001 } else { high - low };
                let divided = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                (1.0 - divided) * frequency + divided * frequency / f64::from(*factor)
            }
            // `validate` has checked that there is one for each pair.
            Self::Factors(factors) => frequency / factors.get(pair).map_or(1.0, |&factor| f64::from(factor)),
        }
    }
}
