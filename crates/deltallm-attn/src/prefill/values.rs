//! What a tile needs of values: weighted sums.

use deltallm_simd::Isa;

/// Memory for values that are converted first.
#[derive(Debug, Default)]
pub(crate) struct ValueScratch {
    pub(crate) rows: Vec<f32>,
    /// Tokens as numbers of rows.
    pub(crate) numbers: Vec<usize>,
    /// Values and weights in 16 bits.
    pub(crate) pairs: Vec<u32>,
    pub(crate) weights: Vec<u32>,
}

/// Values of a segment in one of the forms in which tiles add them up. Each form is in the file of its arithmetic.
pub(crate) trait TileValues: Send + Sync {
    /// Whether tokens of several blocks can be added together.
    fn spans_blocks(&self) -> bool;

    /// `sums[channel][lane] += sum over the tokens of weights[token][lane] * values[token][channel]`, for at most a block of tokens.
    fn add(
        &self,
        isa: Isa,
        tokens: &[usize],
        weights: &[f32],
        lanes: usize,
        sums: &mut [f32],
        scratch: &mut ValueScratch,
    );
}
