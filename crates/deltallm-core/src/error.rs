//! What can go wrong when keys are coded or memory is charged.

use crate::{element::ElementType, fingerprint::ModelFingerprint};

/// Errors of this crate. Every variant says what was expected and what came.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CoreError {
    /// A key or value does not have one number per channel, or thresholds are given for none or for more than can be coded.
    #[error("expected {expected} channels, got {got}")]
    Channels {
        /// Channels of the encoder or store; the least or the most there can be.
        expected: usize,
        /// Length of what was passed.
        got: usize,
    },
    /// A number cannot be stored: NaN, infinite, or beyond the largest value of the element type.
    #[error(
        "channel {channel}: expected a finite value of at most {limit:e} in magnitude ({element}), got {got}"
    )]
    NotStorable {
        /// Where in the row.
        channel: usize,
        /// The element type of the store.
        element: ElementType,
        /// Largest magnitude the element type holds.
        limit: f32,
        /// The offending number.
        got: f32,
    },
    /// A threshold is negative, NaN or infinite.
    #[error("threshold {index}: expected a finite number >= 0, got {got}")]
    Threshold {
        /// Position in the list that was passed.
        index: usize,
        /// The offending threshold.
        got: f32,
    },
    /// A target that is not a share.
    #[error("zero fraction: expected a number in 0..=1, got {got}")]
    ZeroFraction {
        /// The target that was passed.
        got: f32,
    },
    /// A threshold profile has been made for other dimensions.
    #[error("threshold profile: expected {what} = {expected}, got {got}")]
    ProfileShape {
        /// Which dimension: `layers`, `kv_heads`, `head_dim` or `thresholds`.
        what: &'static str,
        /// The value the model calls for.
        expected: usize,
        /// The value in the profile.
        got: usize,
    },
    /// A threshold profile has been made for another model.
    #[error("threshold profile: expected model {expected}, got a profile of model {got}")]
    ProfileModel {
        /// Fingerprint of the model in use.
        expected: ModelFingerprint,
        /// Fingerprint in the profile.
        got: ModelFingerprint,
    },
    /// The memory budget does not cover an allocation. Nothing has been changed.
    #[error("memory budget exhausted: {requested} bytes requested, {available} of {limit} bytes left")]
    BudgetExhausted {
        /// Bytes of the allocation that was refused.
        requested: usize,
        /// Bytes still free.
        available: usize,
        /// Bytes of the whole budget.
        limit: usize,
    },
    /// A cache was asked to keep more tokens than it holds.
    #[error("truncate: expected a length of at most {len}, got {got}")]
    TruncateBeyondEnd {
        /// Tokens in the cache.
        len: usize,
        /// Length that was asked for.
        got: usize,
    },
    /// A cache was asked to keep tokens of which it has dropped the last one.
    #[error(
        "truncate: expected 0 or a length of more than {first}, since tokens before have been dropped, got {got}"
    )]
    Dropped {
        /// The first token that is held.
        first: usize,
        /// Length that was asked for.
        got: usize,
    },
    /// Two statistics of different head counts were merged.
    #[error("expected statistics of {expected} heads, got {got}")]
    Heads {
        /// Heads on the left.
        expected: usize,
        /// Heads on the right.
        got: usize,
    },
    /// A name is not one of the known ones.
    #[error("unknown {what} {got:?}: expected one of {expected}")]
    UnknownName {
        /// What was being parsed.
        what: &'static str,
        /// The accepted names.
        expected: &'static str,
        /// The name that was passed.
        got: String,
    },
}
