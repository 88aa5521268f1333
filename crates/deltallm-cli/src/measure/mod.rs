//! What settings cost in accuracy: perplexity, and the divergence from dense attention on a held-out text.

mod held_out;
mod perplexity;

pub use held_out::{HeldOutText, MakeKernel, Measured};
pub use perplexity::{Comparison, Perplexity, TokenScore, score_rows, windows};
