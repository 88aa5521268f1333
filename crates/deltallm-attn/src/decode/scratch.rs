//! Working memory: what a thread keeps from call to call, and from block to block of a call.

use std::{cell::Cell, thread::LocalKey};

use deltallm_core::HeadSparsity;

use super::{chunks::Chunk, differences::UnpackedDifferences, queries::CodedQueries, select::Kept};

thread_local! {
    /// Working memory of a call, kept for the thread's next one, so that a step of decoding allocates nothing but cache.
    pub(super) static MEMORY: Cell<Memory> = Cell::default();
    /// The same for each thread that shares the work of a call.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Calls `work` with what the thread has kept, or with something new within such a call.
pub(super) fn with_kept<T: Default, R>(
    kept: &'static LocalKey<Cell<T>>,
    work: impl FnOnce(&mut T) -> R,
) -> R {
    // A thread that is ending has nothing any more.
    let mut memory = kept.try_with(Cell::take).unwrap_or_default();
    let result = work(&mut memory);
    let _ = kept.try_with(|kept| kept.set(memory));
    result
}

/// Calls `work` with the thread's working memory, from which nothing of earlier calls is used.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    with_kept(&SCRATCH, |scratch| {
        scratch.kernels.forget();
        work(scratch)
    })
}

/// Working memory of a call.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Scaled queries, `[heads, channels]`.
    pub(super) queries: Vec<f32>,
    /// Per kv head.
    pub(super) counts: Vec<HeadSparsity>,
    /// The chunks of the segments before the first one that skips, and of the rest.
    pub(super) rounds: [Vec<Chunk>; 2],
    /// A [`Partial`](super::partial::Partial) for each kv head.
    pub(super) merged: Vec<f32>,
    /// A [`Partial`](super::partial::Partial) for each chunk of a round, and the values that it skipped.
    pub(super) partials: Vec<f32>,
    pub(super) skipped: Vec<u64>,
}

/// Working memory of a thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// `[group]`: scores above these make a value count.
    pub(super) thresholds: Vec<f32>,
    /// `[group, BLOCK_TOKENS]`.
    pub(super) scores: Vec<f32>,
    /// The same: of the block before, whose values are still to be added.
    pub(super) weights: Vec<f32>,
    /// Which keys these weights are for.
    pub(super) kept: Kept,
    pub(super) kernels: KernelScratch,
    pub(super) converted: Converted,
}

/// Rows as f32, and the same padded.
#[derive(Debug, Default)]
pub(super) struct Converted {
    pub(super) rows: Vec<f32>,
    pub(super) padded: Vec<f32>,
}

/// Makes `memory` hold `len` times `value`.
pub(super) fn refill<T: Clone>(memory: &mut Vec<T>, len: usize, value: T) {
    memory.clear();
    memory.resize(len, value);
}

/// Room for the keys of a delta-coded block, and for what is derived from a store's scales.
#[derive(Debug, Default)]
pub(crate) struct KernelScratch {
    pub(crate) f32s: Vec<f32>,
    pub(crate) halves: Vec<u16>,
    pub(crate) bytes: Vec<i8>,
    /// What the codes of a block's keys change by.
    pub(crate) differences: UnpackedDifferences,
    /// Scales as f32.
    pub(crate) scales: Vec<f32>,
    pub(crate) coded: CodedQueries,
    pub(crate) keys: Option<[usize; 2]>,
}

impl KernelScratch {
    /// What is derived from queries and keys is derived again if `keys` (kv head and segment) are others than before.
    pub(crate) fn begin(&mut self, keys: [usize; 2]) {
        if self.keys.replace(keys) != Some(keys) {
            self.coded.forget();
        }
    }

    /// Other queries follow, whatever their kv head and segment.
    pub(crate) fn forget(&mut self) {
        self.keys = None;
    }
}
