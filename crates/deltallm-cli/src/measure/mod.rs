//! What settings cost in accuracy: perplexity, and the divergence from dense attention on a held-out text.

mod argmax;
mod held_out;
mod windows;

pub(crate) use argmax::argmax;
pub use deltallm::calibration::{Comparison, Perplexity, TokenScore, score_rows};
pub use held_out::{HeldOutText, MakeKernel, Measured};
pub use windows::WindowedText;
