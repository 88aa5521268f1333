//! Keys and values in 16 bits, as tiles see them.

use std::ops::Range;

use deltallm_simd::Isa;

use super::{PairKeys, PairValues, Pairs};
use crate::prefill::{
    keys::{KeyScratch, TileKeys, TileQueries, number_from},
    values::{TileValues, ValueScratch},
};

/// Keys of the tokens from `first` on.
#[derive(Debug)]
pub(crate) struct TilePairKeys {
    pub(crate) pairs: Pairs,
    pub(crate) first: usize,
    pub(crate) keys: PairKeys,
}

/// Values of some tokens.
#[derive(Debug)]
pub(crate) struct TilePairValues {
    pub(crate) pairs: Pairs,
    pub(crate) tokens: Range<usize>,
    pub(crate) values: PairValues,
}

impl TileKeys for TilePairKeys {
    fn score(
        &self,
        tokens: &[usize],
        queries: &TileQueries,
        limits: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
        scratch: &mut KeyScratch,
    ) {
        number_from(self.first, tokens, &mut scratch.numbers);
        self.pairs.scores(&self.keys, &scratch.numbers, &queries.pairs, limits, out, kept);
    }
}

impl TileValues for TilePairValues {
    fn spans_blocks(&self) -> bool {
        true
    }

    fn add(
        &self,
        _: Isa,
        tokens: &[usize],
        weights: &[f32],
        lanes: usize,
        sums: &mut [f32],
        scratch: &mut ValueScratch,
    ) {
        let head_dim = sums.len() / lanes;
        number_from(self.tokens.start, tokens, &mut scratch.numbers);
        self.pairs.pair(&self.values, &scratch.numbers, head_dim, &mut scratch.pairs);
        self.pairs.weights(weights, lanes, &mut scratch.weights);
        self.pairs.accumulate(&self.values, &scratch.pairs, &scratch.weights, lanes, sums);
    }
}
