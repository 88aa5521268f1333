//! What can go wrong in a calibration.

use std::error::Error;

use deltallm_core::CoreError;

use crate::{AttentionError, SpecError};

/// Errors of a calibration. Every variant says what was expected and what came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The model has no such layer.
    #[error("layer: expected one below {expected}, got {got}: layers are counted from 0")]
    Layer {
        /// Layers of the model.
        expected: usize,
        /// The layer that came.
        got: usize,
    },
    /// Layers were not shown the same text, or not in the same way.
    #[error(
        "layer {layer}: expected {expected} {what}, as in layer 0, got {got}: every layer must be shown the same windows, with \
         output projection and residual stream or without"
    )]
    Uneven {
        /// The layer.
        layer: usize,
        /// What differs.
        what: &'static str,
        /// What layer 0 has.
        expected: usize,
        /// What the layer has.
        got: usize,
    },
    /// A layer was shown a residual stream of another length than its queries, keys and values.
    #[error(
        "layer {layer}: expected a residual stream of {expected} tokens in all, as many as were observed, got {got}"
    )]
    Residual {
        /// The layer.
        layer: usize,
        /// Tokens observed.
        expected: usize,
        /// Tokens of the residual stream.
        got: usize,
    },
    /// No window has keys that are not exact.
    #[error(
        "windows: expected one of at least {expected} tokens, more than exact window and sinks together, got {got} at most: use \
         longer windows of text, or fewer exact keys"
    )]
    TooShort {
        /// Tokens needed.
        expected: usize,
        /// Tokens of the longest window.
        got: usize,
    },
    /// Even few zeros diverge further than was asked for.
    #[error(
        "expected a divergence that thresholds can stay within, got {limit:?} nats: with {:.0} % zeros, the fewest that are tried, it \
         is {least:.6} nats",
        100.0 * zero_fraction
    )]
    Unreachable {
        /// What was asked for, nats.
        limit: f64,
        /// The smallest zero fraction.
        zero_fraction: f64,
        /// Its divergence, nats.
        least: f64,
    },
    /// A token that the logits know nothing of.
    #[error(
        "expected tokens below {expected}, the columns of the logits, got {got}: the tokenizer may be that of another model"
    )]
    NoSuchToken {
        /// Columns of the logits.
        expected: usize,
        /// The token that came.
        got: u32,
    },
    /// Logits of which no probabilities can be made, or that exclude the token that came.
    #[error("logits, row {row}: expected numbers, and that of the token that came above -inf, got {got}")]
    Logit {
        /// The row, of those that were given together.
        row: usize,
        /// The number that came.
        got: f32,
    },
    /// Settings or numbers that attention refuses.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// The engine could not run or score a setting.
    #[error(transparent)]
    Engine(Box<dyn Error + Send + Sync>),
}

impl From<CoreError> for CalibrationError {
    fn from(error: CoreError) -> Self {
        AttentionError::from(error).into()
    }
}

impl From<SpecError> for CalibrationError {
    fn from(error: SpecError) -> Self {
        AttentionError::from(error).into()
    }
}
