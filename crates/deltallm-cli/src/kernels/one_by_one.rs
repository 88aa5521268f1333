//! Attention as in generation, for text that is known beforehand.

use deltallm::attn::forward_one_by_one;
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
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        forward_one_by_one(&mut *self.0, q, k, v, out)
    }

    /// In generation there is no prompt to announce.
    fn announce(&mut self, _: usize) {}
}
