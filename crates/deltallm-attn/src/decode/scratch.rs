//! What a thread keeps from block to block of a call.

use super::{differences::Differences, queries::CodedQueries};

/// Room for the keys of a delta-coded block, and for what is derived from a store's scales.
#[derive(Debug, Default)]
pub(crate) struct KernelScratch {
    pub(crate) f32s: Vec<f32>,
    pub(crate) halves: Vec<u16>,
    pub(crate) bytes: Vec<i8>,
    /// What the codes of a block's keys change by.
    pub(crate) differences: Differences,
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
