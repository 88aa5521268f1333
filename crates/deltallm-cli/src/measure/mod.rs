//! What settings cost in accuracy: perplexity, and the divergence from dense attention on a held-out text.

mod held_out;
mod scores;
mod windows;

pub use deltallm::calibration::{Comparison, Perplexity, TokenScore, score_rows};
pub use held_out::{HeldOutText, MakeKernel, Measured};
pub(crate) use scores::{argmax, finite_scores};
pub use windows::WindowedText;
