//! Memory that will be needed soon.

use deltallm_simd::{
    prefetch::{LINE, prefetch, prefetch_l2},
    tuning::NEAR_BYTES,
};

/// Some adjacent memory to ask for, a little with every step of a loop: a page of the cache begins wherever the allocator put
/// it, which the hardware's own prefetching learns too late.
///
/// A core has room for few lines on their way to its L1 cache and waits when there are more. So little memory goes there, and
/// much, which would drive out what is being worked on besides, into the L2 cache.
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

    /// This and `more`, which lies behind it.
    pub(super) fn and<T>(self, more: &[T]) -> Self {
        Self { bytes: self.bytes + size_of_val(more), ..self }
    }

    /// The same in `steps` parts.
    #[inline(always)]
    pub(super) fn steps(self, steps: usize) -> Steps {
        let lines = self.bytes.div_ceil(LINE);
        let lines_per_step = lines.div_ceil(steps.max(1));
        Steps { next: self.start, lines, lines_per_step, near: self.bytes <= NEAR_BYTES }
    }

    /// Asks for the picked rows of `bytes` bytes each, all at once.
    #[inline(always)]
    pub(super) fn prefetch_rows(self, picks: &[u8], bytes: usize) {
        for pick in picks {
            let row = self.start.wrapping_add(usize::from(*pick) * bytes);
            prefetch_l2(row);
            // A row may begin anywhere in a line: its last byte may need one line more.
            let mut byte = LINE.min(bytes - 1);
            while byte < bytes {
                prefetch_l2(row.wrapping_add(byte));
                byte = if byte == bytes - 1 { bytes } else { (byte + LINE).min(bytes - 1) };
            }
        }
    }
}

/// What is left to ask for.
pub(super) struct Steps {
    next: *const u8,
    lines: usize,
    lines_per_step: usize,
    near: bool,
}

impl Steps {
    /// Asks for the next part.
    #[inline(always)]
    pub(super) fn prefetch(&mut self) {
        let lines = self.lines_per_step.min(self.lines);
        for _ in 0..lines {
            match self.near {
                true => prefetch(self.next),
                false => prefetch_l2(self.next),
            }
            self.next = self.next.wrapping_add(LINE);
        }
        self.lines -= lines;
    }
}
