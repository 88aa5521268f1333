//! What a session holds of speculative decoding.

use ndarray::Array2;

/// A draft that the caches hold beyond the tokens of the session: it is not known yet whether it follows.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) tokens: Vec<u32>,
    /// After the token before each of these, and after the last: `[tokens + 1, vocab_size]`.
    pub(super) logits: Array2<f32>,
    /// How many have been accepted so far.
    pub(super) accepted: usize,
}

/// How many tokens have been drafted in speculative decoding, and how many of them accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpeculationStats {
    /// Tokens that were read before it was known whether they follow.
    pub drafted: usize,
    /// Of these, tokens that followed.
    pub accepted: usize,
}
