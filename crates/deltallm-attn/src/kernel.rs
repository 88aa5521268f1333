//! The interface between a model and its attention.

use deltallm_core::{AtLimit, Footprint, SparsityStats};
use ndarray::{ArrayView3, ArrayViewMut3};

use crate::{
    AttentionError, HeadsView, HeadsViewMut,
    view::{with_view, with_view_mut},
};

/// One layer's attention together with its key-value cache.
///
/// Keys come after rotary embedding. Positions are implied: the first token ever appended is position 0. After any
/// error the cache holds the tokens it held before the call.
pub trait AttentionKernel: Send {
    /// Appends `k` and `v` (`[tokens, kv_heads, head_dim]`) to the cache and attends `q` (`[tokens, heads, head_dim]`)
    /// to all of it, causally. The result goes to `out`, shaped like `q`.
    ///
    /// `q` may have fewer tokens than `k`: then its queries are those of the last ones, and the others are cached without
    /// being asked for anything. So a cache that another kernel has filled moves over in one call.
    ///
    /// # Errors
    /// [`AttentionError`] for wrong shapes, numbers that are not finite or cannot be stored, or an exhausted budget.
    /// The cache is then as it was before the call, and `out` may have been written in part.
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError>;

    /// [`forward_heads`](Self::forward_heads) for ndarray views of any strides.
    ///
    /// # Errors
    /// The same.
    fn forward(
        &mut self,
        q: ArrayView3<f32>,
        k: ArrayView3<f32>,
        v: ArrayView3<f32>,
        out: ArrayViewMut3<f32>,
    ) -> Result<(), AttentionError> {
        with_view(q, |q| {
            with_view(k, |k| with_view(v, |v| with_view_mut(out, |out| self.forward_heads(q, k, v, out))))
        })
    }

    /// Announces that the next `tokens` tokens are one prompt, however many calls bring them. A window that depends on
    /// the prompt's length is fixed by this; without it every call of more than one token counts as a whole prompt.
    fn begin_prompt(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Tokens in the cache: the position of the next one. Tokens that a kernel has dropped of its own accord count.
    fn len(&self) -> usize;

    /// Whether the cache is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every token from `len` on (speculative decoding, prompt reuse).
    ///
    /// # Errors
    /// [`deltallm_core::CoreError::TruncateBeyondEnd`] when `len` exceeds the tokens in the cache; from kernels that drop
    /// old tokens [`AttentionError::Dropped`] when the next query would miss some. What the latest call has brought can
    /// always be taken back: a model does so when another layer fails.
    fn truncate(&mut self, len: usize) -> Result<(), AttentionError>;

    /// Bytes the cache holds.
    fn footprint(&self) -> Footprint;

    /// Sparsity per kv head: of the keys in the cache, and of all pairs attended since the kernel was made.
    fn stats(&self) -> SparsityStats;

    /// Bytes that appending `tokens` tokens in one call would charge at most. For one token it is close enough that a
    /// call never fails for want of memory when the budget has this much left. 0 where the kernel does not know.
    fn growth(&self, tokens: usize) -> usize {
        let _ = tokens;
        0
    }

    /// Makes the cache smaller in the way the caller chose and returns the bytes given back: 0 when there is nothing
    /// (left) to gain. No token is lost; what later calls answer may change by what [`AtLimit`] says.
    ///
    /// # Errors
    /// [`deltallm_core::CoreError::NotStorable`] for numbers that the narrower type cannot hold; the cache is unchanged
    /// then.
    fn relieve(&mut self, at_limit: AtLimit) -> Result<usize, AttentionError> {
        let _ = at_limit;
        Ok(0)
    }
}

impl<K: AttentionKernel + ?Sized> AttentionKernel for Box<K> {
    fn forward_heads(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        (**self).forward_heads(q, k, v, out)
    }

    fn begin_prompt(&mut self, tokens: usize) {
        (**self).begin_prompt(tokens);
    }

    fn len(&self) -> usize {
        (**self).len()
    }

    fn truncate(&mut self, len: usize) -> Result<(), AttentionError> {
        (**self).truncate(len)
    }

    fn footprint(&self) -> Footprint {
        (**self).footprint()
    }

    fn stats(&self) -> SparsityStats {
        (**self).stats()
    }

    fn growth(&self, tokens: usize) -> usize {
        (**self).growth(tokens)
    }

    fn relieve(&mut self, at_limit: AtLimit) -> Result<usize, AttentionError> {
        (**self).relieve(at_limit)
    }
}
