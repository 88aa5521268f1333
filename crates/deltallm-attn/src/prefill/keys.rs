//! What a tile needs of keys: scores.

use deltallm_simd::Isa;

use super::{aligned::Aligned, pairs::PairQueries};

/// The queries of a tile, side by side in the lanes.
#[derive(Debug)]
pub(crate) struct TileQueries {
    pub(crate) isa: Isa,
    pub(crate) lanes: usize,
    /// Scaled, `[head_dim, lanes]`: scores come out in units of ln 2.
    pub(crate) rows: Aligned,
    /// The same in 16 bits, where keys are.
    pub(crate) pairs: PairQueries,
}

/// Memory for keys that are made into rows of f32 first.
#[derive(Debug, Default)]
pub(crate) struct KeyScratch {
    pub(crate) rows: Vec<f32>,
    /// Tokens as numbers of rows.
    pub(crate) numbers: Vec<usize>,
}

/// Keys of a segment in one of the forms in which tiles are scored. Each form is in the file of its arithmetic.
pub(crate) trait TileKeys: Send + Sync {
    /// Scores of the keys `tokens`, `[tokens, lanes]`, into `out`; with `limits`, `[lanes]`, of those that are above the limit of any
    /// lane, packed to the front. `kept` becomes the places among `tokens` of those that are there.
    ///
    /// Tokens ascend. Without a first pass they are consecutive ones of one block.
    fn score(
        &self,
        tokens: &[usize],
        queries: &TileQueries,
        limits: Option<&[f32]>,
        out: &mut [f32],
        kept: &mut Vec<usize>,
        scratch: &mut KeyScratch,
    );
}

/// Tokens as rows of a matrix whose first row is that of the token `first`.
pub(crate) fn number_from(first: usize, tokens: &[usize], numbers: &mut Vec<usize>) {
    numbers.clear();
    numbers.extend(tokens.iter().map(|token| token - first));
}
