//! What is done once for all tiles of a call: keys and values brought into the form that the kernels read.

use std::{ops::Range, sync::Arc};

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix};
use deltallm_simd::Isa;

use crate::{
    AttentionOptions,
    simd::{Filter, KeyCodes, KeyStreams, MOST_CHANNELS, PairKeys, PairValues, Pairs},
    tile::{Keys, Phase, Rows},
};

/// A phase's keys and values, ready for many tiles.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) keys: KeyForm,
    pub(crate) values: ValueForm,
    /// Codes for the first pass, where values may be skipped.
    pub(crate) filter: Option<KeyCodes>,
}

/// The form in which keys are multiplied.
#[derive(Debug, Default)]
pub(crate) enum KeyForm {
    /// As they are: rows are read block by block.
    #[default]
    AsHeld,
    /// Differences, of all blocks from the first one on.
    Streams(KeyStreams),
    /// Rows of f32.
    Rows(DenseRows),
    /// Rows in 16 bits.
    Pairs(PairRows),
}

/// The form in which values are multiplied.
#[derive(Debug, Default)]
pub(crate) enum ValueForm {
    /// As they are: rows are read block by block.
    #[default]
    AsHeld,
    /// Rows of f32.
    Rows(DenseRows),
    /// In 16 bits; phases that share rows share these.
    Pairs(Arc<Values>),
}

/// Rows of the tokens from `first` on, `[tokens, head_dim]`.
#[derive(Debug)]
pub(crate) struct DenseRows {
    pub(crate) first: usize,
    pub(crate) rows: Vec<f32>,
}

/// Keys of the tokens from `first` on in 16 bits.
#[derive(Debug)]
pub(crate) struct PairRows {
    pub(crate) arithmetic: Pairs,
    pub(crate) first: usize,
    pub(crate) keys: PairKeys,
}

/// Values of some tokens in 16 bits.
#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) arithmetic: Pairs,
    pub(crate) tokens: Range<usize>,
    pub(crate) pairs: PairValues,
}

/// Prepares the keys `tokens` of each of the phases of a kv head.
pub(crate) fn prepare_head(
    options: &AttentionOptions,
    phases: &[(&Phase, Range<usize>)],
    scratch: &mut Vec<f32>,
) -> Vec<Prepared> {
    let (isa, head_dim) = (options.isa, options.shape.head_dim());
    let pairs = Pairs::of(isa, options.precision);
    let mut prepared: Vec<Prepared> = Vec::with_capacity(phases.len());
    let mut rows = Vec::new();
    for (phase, tokens) in phases {
        let first = tokens.start;
        // A cap changes the scores after the product, and so what the product says about them.
        let skips = phase.skip_margin.is_some() && options.softcap.is_none();
        let filter = Filter::of(isa).filter(|_| skips);
        // Whether keys are scored through their deltas: their scores are there when they have been tested, without a first pass.
        // Not where there is a first pass: the choice changes the last bits of scores, so it is the same for all CPUs of an
        // instruction set, and no matter of timing. On a Xeon with AVX-512 a key costs about 50 cycles in the first pass and 125 to
        // 190 through its deltas. On Zen 4 the deltas are faster: prompts of 1024 to 4096 tokens in f32 took 1.31 to 2.00 times
        // less time than dense ones with them, and take 1.20 to 1.87 times less with the first pass (docs/results/attention.md).
        let deltas = match phase.keys {
            Keys::Delta(matrix) if pairs.is_none() && matrix.channels() <= MOST_CHANNELS => {
                Some(matrix).filter(|_| !skips || filter.is_none())
            }
            _ => None,
        };
        let filter = filter.filter(|_| deltas.is_none());
        if filter.is_some() || pairs.is_some() {
            read_keys(&phase.keys, tokens.clone(), head_dim, &mut rows);
        }
        let filter = filter.and_then(|filter| filter.keys(tokens.clone(), &rows, head_dim));
        let keys = match (pairs, deltas) {
            (Some(pairs), _) => {
                let mut keys = PairKeys::default();
                pairs.push_keys(&rows, head_dim, &mut keys);
                KeyForm::Pairs(PairRows { arithmetic: pairs, first, keys })
            }
            (None, Some(matrix)) => KeyForm::Streams(streams(isa, matrix, tokens.end)),
            _ if filter.is_some() => KeyForm::Rows(DenseRows { first, rows: std::mem::take(&mut rows) }),
            _ => KeyForm::AsHeld,
        };
        let values = match pairs {
            Some(arithmetic) => {
                let of_others = phases.iter().zip(&prepared).find_map(|((other, _), prepared)| {
                    let ValueForm::Pairs(values) = &prepared.values else { return None };
                    let same = std::ptr::addr_eq(other.values, phase.values);
                    let there = values.tokens.start <= tokens.start && tokens.end <= values.tokens.end;
                    (same && there).then(|| Arc::clone(values))
                });
                ValueForm::Pairs(of_others.unwrap_or_else(|| {
                    read_rows(phase.values, tokens.clone(), scratch);
                    let pairs = arithmetic.values(scratch, head_dim);
                    Arc::new(Values { arithmetic, tokens: tokens.clone(), pairs })
                }))
            }
            // Those that are left of several blocks are multiplied together.
            None if skips && (deltas.is_some() || filter.is_some()) => {
                let mut rows = Vec::new();
                read_rows(phase.values, tokens.clone(), &mut rows);
                ValueForm::Rows(DenseRows { first, rows })
            }
            None => ValueForm::AsHeld,
        };
        prepared.push(Prepared { keys, values, filter });
    }
    prepared
}

/// All blocks up to the token `end`.
fn streams(isa: Isa, matrix: &DeltaMatrix, end: usize) -> KeyStreams {
    let (mut streams, mut rows) = (KeyStreams::new(matrix.channels()), Vec::new());
    for block in 0..end.div_ceil(BLOCK_TOKENS) {
        matrix.reconstruct(block, &mut rows);
        streams.push_block(isa, &rows);
    }
    streams
}

/// Keys as f32, `[tokens, head_dim]`.
fn read_keys(keys: &Keys, tokens: Range<usize>, head_dim: usize, out: &mut Vec<f32>) {
    let matrix = match keys {
        Keys::Rows(rows) => return read_rows(*rows, tokens, out),
        Keys::Delta(matrix) => matrix,
    };
    out.clear();
    out.reserve(tokens.len() * head_dim);
    let mut block_rows = Vec::new();
    for block in tokens.start / BLOCK_TOKENS..tokens.end.div_ceil(BLOCK_TOKENS) {
        matrix.reconstruct(block, &mut block_rows);
        let first = block * BLOCK_TOKENS;
        let rows = tokens.start.max(first) - first..tokens.end.min(first + BLOCK_TOKENS) - first;
        out.extend_from_slice(&block_rows[rows.start * head_dim..rows.end * head_dim]);
    }
}

/// Rows as f32, `[tokens, head_dim]`.
fn read_rows(rows: &dyn Rows, tokens: Range<usize>, out: &mut Vec<f32>) {
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
