//! Keys and values as rows of f32: the dense products.

use std::ops::Range;

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::Isa;

use super::{
    keys::{KeyScratch, TileKeys, TileQueries, number_from},
    matmul,
    values::{TileValues, ValueScratch},
};
use crate::segment::TokenRows;

/// Rows of the cache, read block by block.
pub(crate) struct HeldRows<'a>(pub(crate) &'a dyn TokenRows);

/// Rows of the tokens from `first` on, `[tokens, head_dim]`, converted once for many tiles.
#[derive(Debug)]
pub(crate) struct ConvertedRows {
    pub(crate) first: usize,
    pub(crate) rows: Vec<f32>,
}

/// Scores of the rows `numbers` of `keys`; with `limits` of those that are above any.
pub(crate) fn score_rows(
    keys: &[f32],
    numbers: &[usize],
    queries: &TileQueries,
    limits: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let TileQueries { isa, lanes, rows, .. } = queries;
    match limits {
        Some(limits) => matmul::scores_above(*isa, keys, numbers, rows, *lanes, limits, out, kept),
        None => {
            matmul::scores(*isa, keys, numbers, rows, *lanes, out);
            kept.clear();
            kept.extend(0..numbers.len());
        }
    }
}

impl TileKeys for HeldRows<'_> {
    fn score(
        &self,
        tokens: &[usize],
        queries: &TileQueries,
        limits: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
        scratch: &mut KeyScratch,
    ) {
        let Some(held) = span(tokens) else { return };
        number_from(held.start, tokens, &mut scratch.numbers);
        let keys = self.0.read(held, &mut scratch.rows);
        score_rows(keys, &scratch.numbers, queries, limits, out, kept);
    }
}

impl TileKeys for ConvertedRows {
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
        score_rows(&self.rows, &scratch.numbers, queries, limits, out, kept);
    }
}

impl TileValues for HeldRows<'_> {
    /// Rows lie adjacent only within a block.
    fn spans_blocks(&self) -> bool {
        false
    }

    fn add(
        &self,
        isa: Isa,
        tokens: &[usize],
        weights: &[f32],
        lanes: usize,
        sums: &mut [f32],
        scratch: &mut ValueScratch,
    ) {
        let Some(held) = span(tokens) else { return };
        number_from(held.start, tokens, &mut scratch.numbers);
        let values = self.0.read(held, &mut scratch.rows);
        matmul::accumulate(isa, values, &scratch.numbers, weights, lanes, sums);
    }
}

impl TileValues for ConvertedRows {
    fn spans_blocks(&self) -> bool {
        true
    }

    fn add(
        &self,
        isa: Isa,
        tokens: &[usize],
        weights: &[f32],
        lanes: usize,
        sums: &mut [f32],
        scratch: &mut ValueScratch,
    ) {
        number_from(self.first, tokens, &mut scratch.numbers);
        matmul::accumulate(isa, &self.rows, &scratch.numbers, weights, lanes, sums);
    }
}

/// From the first of some ascending tokens to the last.
fn span(tokens: &[usize]) -> Option<Range<usize>> {
    Some(*tokens.first()?..tokens.last()? + 1)
}

/// All rows of `tokens` as f32, `[tokens, head_dim]`, into `out`.
pub(crate) fn read_rows(rows: &dyn TokenRows, tokens: Range<usize>, out: &mut Vec<f32>) {
    out.clear();
    let mut scratch = Vec::new();
    let mut start = tokens.start;
    while start < tokens.end {
        let end = tokens.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
        let block = rows.read(start..end, &mut scratch);
        if out.is_empty() {
            out.reserve(block.len() / (end - start) * tokens.len());
        }
        out.extend_from_slice(block);
        start = end;
    }
}
