//! Keys as the sparse product reads them: what changes from one key to the next.
//!
//! Of every block of [`BLOCK_TOKENS`] keys the first is whole, so a block can be entered without those before it; of the
//! others there are the channels in which they differ from the key before, and by how much (`docs/method.md`, equation 3).
//! What a delta matrix has not transmitted does not differ.

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::Isa;

#[cfg(target_arch = "x86_64")]
use super::arch::stream_avx512;

/// Channels that a stream can number.
pub(crate) const MOST_NUMBERED_CHANNELS: usize = 256;

/// Many blocks of keys.
#[derive(Debug)]
pub(crate) struct KeyStreams {
    /// All channels are below this.
    head_dim: usize,
    /// Number of the first block.
    first_block: usize,
    /// End of each key's differences: `[keys]`.
    ends: Vec<u32>,
    /// Channels of the differences of all keys, ascending within a key.
    channels: Vec<u8>,
    /// The differences.
    deltas: Vec<f32>,
}

/// The keys of one block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyStream<'a> {
    /// Where the first key's differences begin.
    start: usize,
    ends: &'a [u32],
    channels: &'a [u8],
    deltas: &'a [f32],
}

impl KeyStreams {
    /// No keys yet, of `head_dim` channels, at most [`MOST_NUMBERED_CHANNELS`]; the first block to come has that number.
    pub(crate) fn new(head_dim: usize, first_block: usize) -> Self {
        assert!(head_dim <= MOST_NUMBERED_CHANNELS, "channels have numbers of one byte");
        Self { head_dim, first_block, ends: Vec::new(), channels: Vec::new(), deltas: Vec::new() }
    }

    /// One of the blocks.
    pub(crate) fn block(&self, block: usize) -> KeyStream<'_> {
        let first = (block - self.first_block) * BLOCK_TOKENS;
        let ends = &self.ends[first..self.ends.len().min(first + BLOCK_TOKENS)];
        let start = first.checked_sub(1).map_or(0, |last| self.ends[last] as usize);
        KeyStream { start, ends, channels: &self.channels, deltas: &self.deltas }
    }
}

impl<'a> KeyStream<'a> {
    /// The channels and differences of the first `count` keys, one key after the other. There are as many of the ones as of the
    /// others, and every channel is below `head_dim`.
    #[inline(always)]
    pub(crate) fn keys(self, count: usize) -> impl Iterator<Item = (&'a [u8], &'a [f32])> {
        let mut start = self.start;
        self.ends[..count].iter().map(move |&end| {
            let range = start..end as usize;
            start = range.end;
            (&self.channels[range.clone()], &self.deltas[range])
        })
    }
}

impl KeyStreams {
    /// Appends a block of keys, `[up to BLOCK_TOKENS, head_dim]`. Only the last block may have fewer than it could.
    pub(crate) fn push_block(&mut self, isa: Isa, rows: &[f32]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(avx512) => {
                let Self { head_dim, ends, channels, deltas, .. } = self;
                stream_avx512::push_block(avx512, rows, *head_dim, ends, channels, deltas);
            }
            _ => push_block(rows, self),
        }
    }
}

/// See [`KeyStreams::push_block`].
fn push_block(rows: &[f32], out: &mut KeyStreams) {
    let KeyStreams { head_dim, ends, channels, deltas, .. } = out;
    let mut before = vec![0.0; *head_dim];
    let mut len = deltas.len();
    for row in rows.chunks_exact(*head_dim) {
        // Written always and counted only if there is a difference: a branch would be guessed wrongly too often.
        channels.resize(len + row.len() + 1, 0);
        deltas.resize(len + row.len() + 1, 0.0);
        for (channel, (x, last)) in (0..=u8::MAX).zip(row.iter().zip(&mut before)) {
            let delta = x - *last;
            (channels[len], deltas[len], *last) = (channel, delta, *x);
            len += usize::from(delta != 0.0);
        }
        ends.push(len as u32);
    }
    channels.truncate(len);
    deltas.truncate(len);
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;
    use proptest::prelude::*;

    use super::*;

    /// Keys of which `share` of 256 channels change.
    fn walk(channels: usize, tokens: usize, share: usize, seed: u64) -> Vec<f32> {
        let (mut random, mut key, mut rows) = (Random::new(seed), vec![0.0; channels], Vec::new());
        for _ in 0..tokens {
            for x in &mut key {
                if random.below(256) < share {
                    *x = random.number();
                }
            }
            rows.extend_from_slice(&key);
        }
        rows
    }

    proptest! {
        #[test]
        fn every_instruction_set_has_the_differences_and_nothing_else(
            channels in 1_usize..=MOST_NUMBERED_CHANNELS, tokens in 1_usize..200, share in 0_usize..256, seed: u64, first_block in 0_usize..3,
        ) {
            let rows = walk(channels, tokens, share, seed);
            for isa in Isa::available() {
                let mut streams = KeyStreams::new(channels, first_block);
                rows.chunks(channels * BLOCK_TOKENS).for_each(|block| streams.push_block(isa, block));
                for (block, rows) in rows.chunks(channels * BLOCK_TOKENS).enumerate() {
                    let stream = streams.block(first_block + block);
                    prop_assert_eq!(stream.ends.len(), rows.len() / channels);
                    let mut key = vec![0.0; channels];
                    for (row, (of, deltas)) in rows.chunks(channels).zip(stream.keys(stream.ends.len())) {
                        prop_assert!(of.is_sorted_by(|a, b| a < b) && of.len() == deltas.len());
                        let mut expected = Vec::new();
                        for (channel, (x, last)) in (0..=u8::MAX).zip(row.iter().zip(&key)) {
                            if x != last {
                                expected.push((channel, x - last));
                            }
                        }
                        let got: Vec<(u8, f32)> = of.iter().copied().zip(deltas.iter().copied()).collect();
                        prop_assert_eq!(got, expected, "{}", isa);
                        key.copy_from_slice(row);
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "one byte")]
    fn more_channels_than_a_byte_can_number_are_a_mistake() {
        KeyStreams::new(MOST_NUMBERED_CHANNELS + 1, 0);
    }
}
