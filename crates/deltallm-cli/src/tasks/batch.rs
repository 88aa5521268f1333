//! Several prompts in one pass over the weights.

use std::ops::Range;

use deltallm::AttentionKernel;
use deltallm::core::HeadSparsity;
use deltallm::models::{LogitRows, Model, ModelError, Sequence};
use ndarray::Array2;

use crate::KernelChoice;

/// Tokens of a batch: enough to keep a matrix product of the linear layers busy.
const BATCH_TOKENS: usize = 512;

/// Cuts prompts of these lengths into consecutive batches. One that is longer than a batch has one of its own.
pub(super) fn batches(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, length) in lengths.enumerate() {
        tokens += length;
        match batches.last_mut() {
            Some(batch) if tokens <= BATCH_TOKENS => batch.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                tokens = length;
            }
        }
    }
    batches
}

/// A prompt that has been read.
pub(super) struct Prefilled {
    /// One kernel per layer.
    pub(super) kernels: Vec<Box<dyn AttentionKernel>>,
    /// The wanted logits, `[rows, vocab_size]`.
    pub(super) logits: Array2<f32>,
}

/// The kernels of all layers, for a prompt of `tokens` tokens.
pub(super) fn make_kernels(
    model: &Model,
    kernel: &KernelChoice,
    tokens: usize,
) -> Result<Vec<Box<dyn AttentionKernel>>, ModelError> {
    let make = |layer: usize| {
        let mut kernel = kernel.make(layer).map_err(|source| ModelError::Attention { layer, source })?;
        kernel.begin_prompt(tokens);
        Ok(kernel)
    };
    (0..model.config().layers).map(make).collect()
}

/// Reads prompts together, each through kernels of its own.
pub(super) fn prefill(
    model: &Model,
    kernel: &KernelChoice,
    prompts: &[(&[u32], LogitRows)],
) -> Result<Vec<Prefilled>, ModelError> {
    let kernels = prompts.iter().map(|(tokens, _)| make_kernels(model, kernel, tokens.len()));
    let mut kernels = kernels.collect::<Result<Vec<_>, _>>()?;
    let mut batch: Vec<Sequence<_>> = prompts
        .iter()
        .zip(&mut kernels)
        .map(|(&(tokens, rows), kernels)| Sequence { tokens, kernels, rows })
        .collect();
    let logits = model.forward_batch(&mut batch)?;
    Ok(kernels.into_iter().zip(logits).map(|(kernels, logits)| Prefilled { kernels, logits }).collect())
}

/// Sparsity of all layers and heads of a sequence.
pub(super) fn sparsity<K: AttentionKernel>(kernels: &[K]) -> HeadSparsity {
    let mut sum = HeadSparsity::default();
    kernels.iter().for_each(|kernel| sum += kernel.stats().total());
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_full_but_not_overfull() {
        assert_eq!(batches([200, 300, 12, 1, 600, 5, 512].into_iter()), [0..3, 3..4, 4..5, 5..6, 6..7]);
        assert!(batches([].into_iter()).is_empty());
    }
}
