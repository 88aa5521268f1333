//! A cache whose latest call can be taken back.

use deltallm::{AttentionKernel, KernelWrapper};

/// Leaves open the step that a model begins with every call, so that the call can be [taken back](AttentionKernel::undo_step) once its result is known: exact keys
/// that a window would have let go of are still there.
pub(crate) struct OpenStep(Box<dyn AttentionKernel>);

impl OpenStep {
    /// Around a kernel, with whatever it has cached.
    pub(crate) fn new(kernel: Box<dyn AttentionKernel>) -> Self {
        Self(kernel)
    }
}

impl KernelWrapper for OpenStep {
    type Inner = dyn AttentionKernel;

    fn inner(&self) -> &Self::Inner {
        &*self.0
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut *self.0
    }

    fn commit(&mut self) {}
}
