//! Several sequences in one call.

use crate::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut};

/// [`AttentionKernel::forward_heads`] for a batch of sequences whose tokens lie one after the other: sequence `i` has the next `tokens[i]`
/// of them, which can be none, and its cache is `kernels[i]`. Shapes are those of one sequence with the tokens of all. With the feature `rayon` the
/// sequences are spread over the current thread pool.
///
/// ```
/// use deltallm_attn::{
///     AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, HeadsView, HeadsViewMut, forward_batch,
/// };
///
/// let new = || DenseAttention::new(AttentionShape::new(2, 1, 8)?, AttentionOptions::default());
/// let (mut prompt, mut other) = (new()?, new()?);
/// let (q, k, mut out) = ([1.0; 6 * 16], [1.0; 6 * 8], [0.0; 6 * 16]); // 5 tokens of one, 1 of the other
/// let (q, k) = (HeadsView::new(&q, [6, 2, 8])?, HeadsView::new(&k, [6, 1, 8])?);
/// forward_batch(&mut [&mut prompt, &mut other], &[5, 1], q, k, k, HeadsViewMut::new(&mut out, [6, 2, 8])?)?;
/// assert_eq!((prompt.len(), other.len()), (5, 1));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
///
/// # Errors
/// [`AttentionError::Shape`] for lengths that do not add up to the tokens, before any cache has changed; the first error of a sequence,
/// when others may have their tokens already: they go back with [`undo_step`](AttentionKernel::undo_step) if a step was begun.
pub fn forward_batch(
    kernels: &mut [&mut dyn AttentionKernel],
    tokens: &[usize],
    q: HeadsView,
    k: HeadsView,
    v: HeadsView,
    mut out: HeadsViewMut,
) -> Result<(), AttentionError> {
    let shape = |input, dimension, expected, got| AttentionError::Shape { input, dimension, expected, got };
    if tokens.len() != kernels.len() {
        return Err(shape("tokens", "sequences", kernels.len(), tokens.len()));
    }
    let sum = tokens.iter().try_fold(0, |sum: usize, tokens| sum.checked_add(*tokens));
    let sum = sum.ok_or(shape("tokens", "tokens (of all sequences)", usize::MAX, usize::MAX))?;
    let inputs = [("q", q.tokens()), ("k", k.tokens()), ("v", v.tokens()), ("out", out.shape()[0])];
    if let Some((input, got)) = inputs.into_iter().find(|(_, tokens)| *tokens != sum) {
        return Err(shape(input, "tokens (of all sequences)", sum, got));
    }
    let ranges = tokens.iter().scan(0, |start, tokens| {
        *start += tokens;
        Some(*start - tokens..*start)
    });
    #[cfg(feature = "rayon")]
    if rayon::current_num_threads() > 1 && kernels.len() > 1 && out.has_tokens_apart() {
        use rayon::prelude::*;

        let (mut tasks, mut rest) = (Vec::with_capacity(kernels.len()), out);
        for (kernel, range) in kernels.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty()) {
            let [own, others] = rest.split_at(range.len());
            rest = others;
            tasks.push((kernel, range, own));
        }
        return tasks.into_par_iter().try_for_each(|(kernel, range, out)| {
            kernel.forward_heads(q.slice(range.clone())?, k.slice(range.clone())?, v.slice(range)?, out)
        });
    }
    for (kernel, range) in kernels.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty()) {
        let [q, k, v] = [q, k, v].map(|view| view.slice(range.clone()));
        kernel.forward_heads(q?, k?, v?, out.slice(range)?)?;
    }
    Ok(())
}
