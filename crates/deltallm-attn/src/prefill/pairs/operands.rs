//! What products of pairs are made of.

use crate::prefill::softmax::above;

/// Codes of the weights, which are at most 1.
pub(crate) const LARGEST_WEIGHT: f32 = 8191.0;

/// Keys of one kv head in 16 bits.
#[derive(Debug, Default)]
pub(crate) struct PairKeys {
    /// Codes, or bits of bf16: `[tokens, head_dim]`, padded to whole pairs.
    pub(crate) rows: Vec<u16>,
    /// What to multiply the codes of a token by. Empty for bf16.
    pub(crate) scales: Vec<f32>,
}

/// Values of one kv head in 16 bits.
#[derive(Debug)]
pub(crate) struct PairValues {
    /// Codes, or bits of bf16: `[tokens, head_dim]`.
    pub(crate) rows: Vec<u16>,
    /// What to multiply the codes of a channel by. Empty for bf16.
    pub(crate) scales: Vec<f32>,
}

/// A tile of queries in pairs of channels.
#[derive(Debug, Default)]
pub(crate) struct PairQueries {
    /// `[head_dim / 2, lanes]`.
    pub(crate) pairs: Vec<u32>,
    /// What to multiply the codes of a lane by, one for each lane. Not read for bf16.
    pub(crate) scales: Vec<f32>,
}

/// 16-bit numbers of a key of `head_dim` channels.
pub(crate) fn key_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2)
}

/// Moves the rows of scores that are above a limit to the front.
pub(crate) fn keep_above(limits: &[f32], out: &mut [f32], kept: &mut Vec<usize>) {
    let (lanes, mut count) = (limits.len(), 0);
    kept.retain(|&row| {
        let keep = out[row * lanes..][..lanes].iter().zip(limits).any(|(x, limit)| above(*x, *limit));
        if keep {
            out.copy_within(row * lanes..(row + 1) * lanes, count * lanes);
            count += 1;
        }
        keep
    });
}
