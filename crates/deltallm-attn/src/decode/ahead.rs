//! Memory that will be needed soon.

use deltallm_core::internal::{DeltaBlock, DeltaCodes, FloatCodes, StepCodes, StoredRows};
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
pub(crate) struct Ahead {
    start: *const u8,
    bytes: usize,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { start: std::ptr::null(), bytes: 0 }
    }
}

impl Ahead {
    pub(crate) fn of<T>(memory: &[T]) -> Self {
        Self { start: memory.as_ptr().cast(), bytes: size_of_val(memory) }
    }

    /// This and `more`, which follows it in memory.
    pub(crate) fn and<T>(self, more: &[T]) -> Self {
        Self { bytes: self.bytes + size_of_val(more), ..self }
    }

    /// The same in `steps` parts.
    #[inline(always)]
    pub(crate) fn steps(self, steps: usize) -> Steps {
        let lines = self.bytes.div_ceil(LINE);
        let lines_per_step = lines.div_ceil(steps.max(1));
        Steps { next: self.start, lines, lines_per_step, near: self.bytes <= NEAR_BYTES }
    }

    /// Asks for the selected rows of `bytes` bytes each, all at once.
    #[inline(always)]
    pub(crate) fn prefetch_rows(self, selected: &[u8], bytes: usize) {
        for index in selected {
            let row = self.start.wrapping_add(usize::from(*index) * bytes);
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
pub(crate) struct Steps {
    next: *const u8,
    lines: usize,
    lines_per_step: usize,
    near: bool,
}

impl Steps {
    /// Asks for the next part.
    #[inline(always)]
    pub(crate) fn prefetch(&mut self) {
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

/// Asks for the memory of the selected rows.
pub(crate) fn prefetch_values(rows: StoredRows, selected: &[u8], channels: usize) {
    match rows {
        StoredRows::F32(rows) => Ahead::of(rows.data).prefetch_rows(selected, rows.stride * 4),
        StoredRows::F16(rows) => Ahead::of(rows.data).prefetch_rows(selected, rows.stride * 2),
        StoredRows::Bf16(rows) => Ahead::of(rows.data).prefetch_rows(selected, rows.stride * 2),
        StoredRows::Int8(rows) => {
            Ahead::of(rows.codes).prefetch_rows(selected, channels);
            Ahead::of(rows.scales).steps(1).prefetch();
        }
        StoredRows::Int4(rows) => {
            Ahead::of(rows.codes).prefetch_rows(selected, channels / 2);
            Ahead::of(rows.scales).steps(1).prefetch();
        }
    }
}

/// Where some rows are, and their scales.
pub(crate) fn rows_memory(rows: StoredRows, channels: usize) -> [Ahead; 2] {
    let (rows, scales) = match rows {
        // Somebody else's cache, with other heads between the rows.
        StoredRows::F32(rows) if rows.stride != channels => (Ahead::default(), Ahead::default()),
        StoredRows::F32(rows) => (Ahead::of(rows.data), Ahead::default()),
        StoredRows::F16(rows) => (Ahead::of(rows.data), Ahead::default()),
        StoredRows::Bf16(rows) => (Ahead::of(rows.data), Ahead::default()),
        StoredRows::Int8(rows) => (Ahead::of(rows.codes), Ahead::of(rows.scales)),
        StoredRows::Int4(rows) => (Ahead::of(rows.codes), Ahead::of(rows.scales)),
    };
    [rows, scales]
}

/// Where the masks of a block are, and its key frame with the values that follow it, or its differences.
pub(crate) fn block_memory(block: DeltaBlock) -> [Ahead; 2] {
    let codes = match block.codes {
        DeltaCodes::F32(FloatCodes { frame, values }) => Ahead::of(frame).and(values),
        DeltaCodes::F16(FloatCodes { frame, values }) => Ahead::of(frame).and(values),
        DeltaCodes::Bf16(FloatCodes { frame, values }) => Ahead::of(frame).and(values),
        DeltaCodes::Steps(StepCodes { differences, .. }) => Ahead::of(differences),
    };
    [Ahead::of(block.masks), codes]
}
