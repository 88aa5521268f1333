//! What is done once for all tiles of a call: keys and values brought into the form that the kernels read.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, DeltaStream};

use crate::{
    simd::{PairRows, Pairs},
    tile::{Keys, Phase},
};

/// A phase's keys and values, ready for many tiles.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// As they are: rows are read block by block.
    Rows,
    /// The blocks of a delta matrix, unpacked.
    Streams(Vec<DeltaStream>),
    /// In 16 bits.
    Pairs(PairPhase),
}

/// Keys and values of some tokens in 16 bits.
#[derive(Debug)]
pub(crate) struct PairPhase {
    pub(crate) arithmetic: Pairs,
    /// The tokens that are here.
    pub(crate) tokens: Range<usize>,
    pub(crate) keys: PairRows,
    /// Scales of a block stand together, for blocks that start at multiples of [`BLOCK_TOKENS`].
    pub(crate) values: PairRows,
}

impl Prepared {
    /// Prepares the keys `tokens` of a phase; with `pairs` in 16 bits.
    pub(crate) fn new(phase: &Phase, tokens: Range<usize>, head_dim: usize, pairs: Option<Pairs>) -> Self {
        match (pairs, phase.keys) {
            (Some(pairs), _) => Self::Pairs(PairPhase::new(pairs, phase, tokens, head_dim)),
            (None, Keys::Rows(_)) => Self::Rows,
            (None, Keys::Delta(matrix)) => {
                let blocks = 0..tokens.end.div_ceil(BLOCK_TOKENS);
                Self::Streams(
                    blocks
                        .map(|block| {
                            let mut stream = DeltaStream::default();
                            matrix.stream(block, &mut stream);
                            stream
                        })
                        .collect(),
                )
            }
        }
    }
}

impl PairPhase {
    fn new(pairs: Pairs, phase: &Phase, tokens: Range<usize>, head_dim: usize) -> Self {
        let (mut keys, mut values, mut scratch) = (PairRows::default(), PairRows::default(), Vec::new());
        let mut start = tokens.start;
        while start < tokens.end {
            let block = start / BLOCK_TOKENS;
            let part = start..tokens.end.min((block + 1) * BLOCK_TOKENS);
            match phase.keys {
                Keys::Rows(rows) => {
                    pairs.push_keys(rows.read(part.clone(), &mut scratch), head_dim, &mut keys)
                }
                Keys::Delta(matrix) => {
                    matrix.reconstruct(block, &mut scratch);
                    let first = block * BLOCK_TOKENS;
                    let rows = &scratch[(part.start - first) * head_dim..(part.end - first) * head_dim];
                    pairs.push_keys(rows, head_dim, &mut keys);
                }
            }
            pairs.push_values(phase.values.read(part.clone(), &mut scratch), head_dim, &mut values);
            start = part.end;
        }
        Self { arithmetic: pairs, tokens, keys, values }
    }
}
