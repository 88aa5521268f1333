//! Sequences that go through the model together: their tokens, the logits wanted, and the attention of each.

use std::fmt;
use std::ops::Range;

use deltallm_attn::{AttentionError, AttentionKernel};
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, Axis, s};
use rayon::prelude::*;

/// Which tokens of a call the caller wants logits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// Every token's.
    All,
    /// The last token's.
    Last,
    /// Those of the last so many tokens (of all, if the call has fewer).
    Tail(usize),
    /// None: the call only fills the caches.
    None,
}

impl LogitRows {
    /// How many of a call of `tokens` tokens.
    pub(super) fn of(self, tokens: usize) -> usize {
        match self {
            Self::All => tokens,
            Self::Last => 1,
            Self::Tail(rows) => rows.min(tokens),
            Self::None => 0,
        }
    }
}

/// One sequence of a batch.
pub struct Sequence<'a, K> {
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// Its attention kernels, one per layer, each with the same number of cached tokens.
    pub kernels: &'a mut [K],
    /// The logits wanted.
    pub rows: LogitRows,
}

impl<K> fmt::Debug for Sequence<'_, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sequence")
            .field("tokens", &self.tokens)
            .field("kernels", &self.kernels.len())
            .field("rows", &self.rows)
            .finish()
    }
}

/// What a layer's attention is given, for an observer ([`Model::forward_observed`](crate::Model::forward_observed)).
#[derive(Debug)]
#[non_exhaustive]
pub struct AttentionInput<'a> {
    /// Which layer.
    pub layer: usize,
    /// The residual stream that the layer's output is added to, before its norm: `[tokens, hidden_size]`.
    pub residual: ArrayView2<'a, f32>,
    /// Queries after RoPE, `[tokens, heads, head_dim]`.
    pub q: ArrayView3<'a, f32>,
    /// Keys after RoPE, `[tokens, kv_heads, head_dim]`.
    pub k: ArrayView3<'a, f32>,
    /// Values, `[tokens, kv_heads, head_dim]`.
    pub v: ArrayView3<'a, f32>,
}

/// All kernels of all sequences.
pub(super) fn kernels<'a, K>(batch: &'a mut [Sequence<K>]) -> impl Iterator<Item = &'a mut K> {
    batch.iter_mut().flat_map(|sequence| sequence.kernels.iter_mut())
}

/// Every sequence's tokens, `[tokens, heads, head_dim]`, through its own kernel of layer `layer` into `out`, of the queries'
/// shape.
pub(super) fn attend<K: AttentionKernel>(
    batch: &mut [Sequence<K>],
    layer: usize,
    [q, k, v]: [ArrayView3<f32>; 3],
    out: ArrayViewMut3<f32>,
) -> Result<(), AttentionError> {
    // Spares the single sequence, which is every decoding step, the way through the thread pool.
    if let [sequence] = batch {
        return sequence.kernels[layer].forward(q, k, v, out);
    }
    let mut rest = out;
    let ranges: Vec<_> = token_ranges(batch).collect();
    let mut tasks = Vec::new();
    for (sequence, range) in batch.iter_mut().zip(ranges) {
        let (own, others) = rest.split_at(Axis(0), range.len());
        rest = others;
        tasks.push((&mut sequence.kernels[layer], range, own));
    }
    tasks.into_par_iter().try_for_each(|(kernel, range, out)| {
        let part = s![range, .., ..];
        kernel.forward(q.slice(part), k.slice(part), v.slice(part), out)
    })
}

/// The position of the next token.
pub(super) fn position<K: AttentionKernel>(kernels: &[K]) -> usize {
    kernels.first().map_or(0, AttentionKernel::len)
}

/// The tokens of all sequences.
pub(super) fn total_tokens<K>(batch: &[Sequence<K>]) -> usize {
    batch.iter().map(|sequence| sequence.tokens.len()).sum()
}

/// Where each sequence's tokens stand when all are put one after the other.
pub(super) fn token_ranges<K>(batch: &[Sequence<K>]) -> impl Iterator<Item = Range<usize>> {
    batch.iter().scan(0, |start, sequence| {
        let range = *start..*start + sequence.tokens.len();
        *start = range.end;
        Some(range)
    })
}
