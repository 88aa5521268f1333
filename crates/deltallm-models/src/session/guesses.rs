//! Tokens that have been read before it is known whether they follow.

use ndarray::Array2;

/// What the caches hold beyond the tokens of the session.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) guesses: Vec<u32>,
    /// After the token before each of these, and after the last: `[guesses + 1, vocab_size]`.
    pub(super) logits: Array2<f32>,
    /// Guesses that have followed so far.
    pub(super) right: usize,
}

/// How many tokens have been guessed, and how many of them were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guesses {
    /// Tokens that were read before it was known whether they follow.
    pub made: usize,
    /// Of these, tokens that followed.
    pub right: usize,
}
