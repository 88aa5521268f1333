//! Checks of single parameters.

use super::ConfigError;

/// The most that any size may be: larger than every published model, and small enough that products of two cannot
/// overflow.
const MAX_SIZE: u64 = 1 << 24;

/// The most layers that a model may have. A file has tensors for each, but what only looks at its parameters must not take long either.
const MAX_LAYERS: u64 = 1 << 12;

/// The most channels that a head may have. Frequencies are computed for each before a tensor has confirmed their number.
const MAX_HEAD_SIZE: u64 = 1 << 16;

/// The number as a size, if it is one that a model can have.
pub(super) fn checked_size(what: &'static str, got: u64) -> Result<usize, ConfigError> {
    checked(what, MAX_SIZE, got)
}

/// The number as one of channels of a head.
pub(super) fn checked_head_size(got: u64) -> Result<usize, ConfigError> {
    checked("head size", MAX_HEAD_SIZE, got)
}

/// The number as one of layers.
pub(super) fn checked_layers(got: u64) -> Result<usize, ConfigError> {
    checked("layers", MAX_LAYERS, got)
}

fn checked(what: &'static str, most: u64, got: u64) -> Result<usize, ConfigError> {
    if (1..=most).contains(&got) { Ok(got as usize) } else { Err(ConfigError::Size { what, most, got }) }
}

/// Refuses what is not a positive finite number.
pub(super) fn positive(what: &'static str, got: f32) -> Result<(), ConfigError> {
    if got.is_finite() && got > 0.0 { Ok(()) } else { Err(ConfigError::NotPositive { what, got }) }
}

/// Channels per head where the file does not say.
pub(super) fn default_head_dim(hidden_size: u64, heads: u64) -> Result<u64, ConfigError> {
    if heads == 0 {
        return Err(ConfigError::Size { what: "heads", most: MAX_SIZE, got: 0 });
    }
    if !hidden_size.is_multiple_of(heads) {
        return Err(ConfigError::HiddenNotDivisible { hidden_size, heads });
    }
    Ok(hidden_size / heads)
}
