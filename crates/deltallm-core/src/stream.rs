//! A block of coded keys unpacked for arithmetic.

use crate::{
    block::{Block, unpack_masks},
    encoder::words,
};

/// One block of a [`DeltaMatrix`](crate::DeltaMatrix) unpacked for arithmetic: `s(m,t) = s(m,t-1) + q_m . delta_t`
/// (`docs/method.md`, equation 3), started from the key frame.
///
/// ```
/// use deltallm_core::{DeltaMatrix, DeltaStream, ElementType, MemoryBudget};
///
/// let mut keys = DeltaMatrix::new(vec![0.5, 0.5], ElementType::F32)?;
/// for key in [[1.0, 2.0], [1.0, 4.0]] {
///     keys.push(&key, &mut MemoryBudget::unlimited().charge())?;
/// }
/// let mut stream = DeltaStream::default();
/// keys.stream(0, &mut stream);
/// let deltas: Vec<Vec<(usize, f32)>> = stream.tokens().map(|t| t.collect()).collect();
/// assert_eq!(deltas, [vec![(0, 1.0), (1, 2.0)], vec![(1, 2.0)]]);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct DeltaStream {
    frame: Vec<f32>,
    ends: Vec<u32>,
    channels: Vec<u32>,
    deltas: Vec<f32>,
    /// Scratch: the transmitted values as f32, and the key they add up to.
    values: Vec<f32>,
    key: Vec<f32>,
}

impl DeltaStream {
    /// Reconstruction before the block's first token: `[channels]`.
    pub fn frame(&self) -> &[f32] {
        &self.frame
    }

    /// Tokens in the block.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the block has no tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// End of each token's deltas in [`channels`](Self::channels) and [`deltas`](Self::deltas): `[tokens]`.
    #[inline]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Channels of the nonzero deltas of all tokens.
    #[inline]
    pub fn channels(&self) -> &[u32] {
        &self.channels
    }

    /// The nonzero deltas of all tokens.
    #[inline]
    pub fn deltas(&self) -> &[f32] {
        &self.deltas
    }

    /// For each token its nonzero deltas as `(channel, delta)`, channels ascending.
    pub fn tokens(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, f32)> + '_> + '_ {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let range = start..end as usize;
            start = end as usize;
            self.channels[range.clone()].iter().map(|c| *c as usize).zip(self.deltas[range].iter().copied())
        })
    }

    /// Overwrites the stream by the deltas of a block.
    pub(crate) fn read(&mut self, block: &Block, base: &[f32], channels: usize) {
        self.clear();
        self.frame.extend_from_slice(&block.frame(base, channels));
        unpack_masks(&block.masks, words(channels), &mut self.channels, &mut self.ends);
        let values = block.values(base, channels, &self.channels, &self.ends, &mut self.values);
        self.key.extend_from_slice(&self.frame);
        self.deltas.resize(values.len(), 0.0);
        differences(&self.channels, values, &mut self.key, &mut self.deltas);
    }

    fn clear(&mut self) {
        self.frame.clear();
        self.ends.clear();
        self.channels.clear();
        self.deltas.clear();
        self.key.clear();
    }
}

/// What every new value differs by from the last one of its channel, which is in `key`.
#[inline]
fn differences(channels: &[u32], values: &[f32], key: &mut [f32], deltas: &mut [f32]) {
    for ((delta, channel), value) in deltas.iter_mut().zip(channels).zip(values) {
        let last = &mut key[*channel as usize];
        *delta = value - *last;
        *last = *value;
    }
}
