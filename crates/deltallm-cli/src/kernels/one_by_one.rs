//! Attention as in generation, for text that is known beforehand.

use deltallm::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper};

/// Hands tokens to another kernel one at a time, as generation does: every query decides alone what to skip, and windows slide.
/// The rest of the model can go through a text in large steps all the same.
pub struct OneByOne(pub Box<dyn AttentionKernel>);

impl KernelWrapper for OneByOne {
    type Inner = dyn AttentionKernel;

    fn inner(&self) -> &Self::Inner {
        &*self.0
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut *self.0
    }

    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        mut out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        if q.tokens() != k.tokens() || q.tokens() != v.tokens() {
            return self.0.forward_heads(q, k, v, out); // which says what is wrong
        }
        let (before, heads, head_dim) = (self.0.len(), q.heads(), q.head_dim());
        let (kv_heads, kv_dim) = (k.heads(), k.head_dim());
        for token in 0..q.tokens() {
            let (mut q_row, mut k_row, mut v_row) = (Vec::new(), Vec::new(), Vec::new());
            (0..heads).for_each(|head| q_row.extend_from_slice(q.row(token, head)));
            (0..kv_heads).for_each(|head| k_row.extend_from_slice(k.row(token, head)));
            (0..kv_heads).for_each(|head| v_row.extend_from_slice(v.row(token, head)));
            let mut row = vec![0.0; heads * head_dim];
            let result = self.0.forward_heads(
                HeadsView::new(&q_row, [1, heads, head_dim])?,
                HeadsView::new(&k_row, [1, kv_heads, kv_dim])?,
                HeadsView::new(&v_row, [1, kv_heads, kv_dim])?,
                HeadsViewMut::new(&mut row, [1, heads, head_dim])?,
            );
            if let Err(error) = result {
                self.0.truncate(before)?;
                return Err(error);
            }
            for (head, part) in row.chunks_exact(head_dim).enumerate() {
                out.row_mut(token, head).copy_from_slice(part);
            }
        }
        Ok(())
    }

    /// In generation there is no prompt to announce.
    fn announce(&mut self, _: usize) {}
}
