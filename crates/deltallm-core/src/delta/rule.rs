//! The rule of delta coding: which channels of a key are transmitted.

use deltallm_simd::{Isa, dispatch};

use super::{
    loops::{moved, or_nonzero},
    mask::{count, words},
};
use crate::{error::CoreError, threshold::HeadThresholds};

/// Thresholds, and what the receiver of the deltas holds. A codec rounds what is transmitted, and makes the reference what the
/// receiver reads back.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) thresholds: HeadThresholds,
    /// The latest key as the receiver has it, `[channels]`; zeros before the first one.
    pub(super) reference: Vec<f32>,
    /// The channels the latest key transmitted, one bit each.
    pub(super) sent: Vec<u64>,
    /// Keys coded, and the entries transmitted for them.
    tokens: usize,
    nonzeros: usize,
}

impl Rule {
    /// # Errors
    /// As [`DeltaEncoder::new`](super::DeltaEncoder::new).
    pub(super) fn new(thresholds: HeadThresholds) -> Result<Self, CoreError> {
        thresholds.check()?;
        let channels = thresholds.start().len();
        Ok(Self {
            thresholds,
            reference: vec![0.0; channels],
            sent: vec![0; words(channels)],
            tokens: 0,
            nonzeros: 0,
        })
    }

    pub(super) fn channels(&self) -> usize {
        self.reference.len()
    }

    /// Entries transmitted so far.
    pub(super) fn nonzeros(&self) -> usize {
        self.nonzeros
    }

    /// What the thresholds are multiplied by for the next key.
    pub(super) fn factor(&self) -> f32 {
        self.thresholds.factor(self.tokens, self.nonzeros)
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub(super) fn next_thresholds(&self) -> Vec<f32> {
        let factor = self.factor();
        self.thresholds.start().iter().map(|theta| theta * factor).collect()
    }

    /// Decides which channels of the next key are transmitted.
    pub(super) fn choose(&mut self, key: &[f32]) {
        let factor = self.factor();
        let (reference, thresholds, sent) = (&self.reference, self.thresholds.start(), &mut self.sent);
        dispatch!(Isa::best(), simd => moved(simd, key, reference, thresholds, factor, sent));
        if self.tokens == 0 {
            or_nonzero(key, sent);
        }
    }

    /// Counts the key whose channels have been transmitted.
    pub(super) fn count(&mut self) {
        self.tokens += 1;
        self.nonzeros += count(&self.sent);
    }

    /// Goes back to `tokens` keys with `nonzeros` transmitted entries. The reference is the codec's business.
    pub(super) fn rewind(&mut self, tokens: usize, nonzeros: usize) {
        (self.tokens, self.nonzeros) = (tokens, nonzeros);
    }
}
