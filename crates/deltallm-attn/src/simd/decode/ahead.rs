//! Memory that will be needed soon.

use super::lanes::Lanes;

/// Some adjacent memory to ask for, a little with every step of a loop: a page of the cache begins wherever the allocator put
/// it, which the hardware's own prefetching learns too late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead {
    start: *const u8,
    bytes: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { start: std::ptr::null(), bytes: 0 }
    }
}

impl Ahead {
    pub(super) fn of<T>(memory: &[T]) -> Self {
        Self { start: memory.as_ptr().cast(), bytes: size_of_val(memory) }
    }

    /// Asks for the share of step `step` of `steps`.
    #[inline(always)]
    pub(super) fn prefetch<S: Lanes>(self, simd: S, step: usize, steps: usize) {
        let lines = self.bytes.div_ceil(LINE).div_ceil(steps);
        for line in step * lines..((step + 1) * lines).min(self.bytes.div_ceil(LINE)) {
            simd.prefetch(self.start.wrapping_add(line * LINE));
        }
    }

    /// Asks for `bytes` bytes from byte `first` on.
    #[inline(always)]
    pub(super) fn prefetch_range<S: Lanes>(self, simd: S, first: usize, bytes: usize) {
        for byte in (first / LINE * LINE..first + bytes).step_by(LINE) {
            simd.prefetch(self.start.wrapping_add(byte));
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;
