//! The time that attention takes within a whole model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use deltallm::{AttentionError, AttentionKernel, HeadsView, HeadsViewMut, KernelWrapper};

/// A clock that the kernels of all layers share.
#[derive(Debug, Clone, Default)]
pub struct AttentionTime(Arc<AtomicU64>);

impl AttentionTime {
    /// What has passed in the kernels so far.
    pub fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// A kernel whose calls are timed.
pub struct Timed {
    kernel: Box<dyn AttentionKernel>,
    time: AttentionTime,
}

impl Timed {
    /// Adds the calls of `kernel` to `time`.
    pub fn new(kernel: Box<dyn AttentionKernel>, time: AttentionTime) -> Self {
        Self { kernel, time }
    }
}

impl KernelWrapper for Timed {
    type Inner = dyn AttentionKernel;

    fn inner(&self) -> &Self::Inner {
        &*self.kernel
    }

    fn inner_mut(&mut self) -> &mut Self::Inner {
        &mut *self.kernel
    }

    fn attend(
        &mut self,
        q: HeadsView,
        k: HeadsView,
        v: HeadsView,
        out: HeadsViewMut,
    ) -> Result<(), AttentionError> {
        let start = Instant::now();
        let result = self.kernel.forward_heads(q, k, v, out);
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.time.0.fetch_add(nanoseconds, Ordering::Relaxed);
        result
    }

    fn fork_wrapped(&self) -> Option<Box<dyn AttentionKernel>> {
        Some(Box::new(Self::new(self.kernel.fork()?, self.time.clone())))
    }
}
