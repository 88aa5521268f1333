//! What examples are run with.

use crate::{KernelChoice, LoadedModel};

/// How examples are run.
#[derive(Debug)]
pub struct Setup<'m> {
    /// The model.
    pub model: &'m LoadedModel,
    /// The attention that is measured.
    pub kernel: KernelChoice,
    /// Exact attention to compare with, if wanted.
    pub dense: Option<KernelChoice>,
    /// What comes before every context, solved examples; empty if there are none.
    pub beginning: String,
    /// Between context and continuation.
    pub delimiter: String,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Perplexity: whether attention goes through the text as in generation.
    pub decode: bool,
}
