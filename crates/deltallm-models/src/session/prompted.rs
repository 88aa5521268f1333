//! What comes of a prompt that a session has got to the end of.

use std::time::Duration;

use ndarray::Array1;

/// A prompt that a session has got to the end of.
#[derive(Debug)]
pub struct Prompted {
    /// After the last token, `[vocab_size]`.
    pub logits: Array1<f32>,
    /// How many of the first tokens had been read before.
    pub found: usize,
    /// Time spent on files.
    pub writing: Duration,
}

impl Prompted {
    /// Without files.
    pub(super) fn found(logits: Array1<f32>, found: usize) -> Self {
        Self { logits, found, writing: Duration::ZERO }
    }
}
