//! What is done once for all tiles of a call: keys and values brought into the form that the kernels read.

use std::{ops::Range, sync::Arc};

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix, DeltaStream};

use crate::{
    AttentionOptions, SimdLevel,
    simd::{KeyCodes, PairKeys, PairValues, Pairs},
    tile::{Keys, Phase, Rows},
};

/// A phase's keys and values, ready for many tiles.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) form: Form,
    /// Codes for the first pass, where values may be skipped.
    pub(crate) filter: Option<KeyCodes>,
}

/// The form in which keys and values are multiplied.
#[derive(Debug, Default)]
pub(crate) enum Form {
    /// As they are: rows are read block by block.
    #[default]
    AsHeld,
    /// The blocks of a delta matrix, unpacked.
    Streams(Vec<DeltaStream>),
    /// Rows of f32.
    Rows(DenseRows),
    /// In 16 bits.
    Pairs(PairRows),
}

/// Keys and values of the tokens from `first` on, `[tokens, head_dim]`.
#[derive(Debug)]
pub(crate) struct DenseRows {
    pub(crate) first: usize,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// Keys and values in 16 bits.
#[derive(Debug)]
pub(crate) struct PairRows {
    pub(crate) arithmetic: Pairs,
    /// Of the tokens from `first` on.
    pub(crate) keys: PairKeys,
    pub(crate) first: usize,
    pub(crate) values: Arc<Values>,
}

/// Values of some tokens in 16 bits; phases that share rows share these.
#[derive(Debug)]
pub(crate) struct Values {
    pub(crate) tokens: Range<usize>,
    pub(crate) pairs: PairValues,
}

/// Prepares the keys `tokens` of each of the phases of a kv head.
pub(crate) fn prepare_head(
    options: &AttentionOptions,
    phases: &[(&Phase, Range<usize>)],
    scratch: &mut Vec<f32>,
) -> Vec<Prepared> {
    let (head_dim, pairs) = (options.shape.head_dim(), options.simd.pairs(options.precision));
    let mut prepared: Vec<Prepared> = Vec::with_capacity(phases.len());
    let mut rows = Vec::new();
    for (phase, tokens) in phases {
        // A cap changes the scores after the product, and so what the product says about them.
        let filter =
            options.simd.filter().filter(|_| phase.skip_margin.is_some() && options.softcap.is_none());
        let tokens = tokens.clone();
        if filter.is_some() || pairs.is_some() {
            read_keys(&phase.keys, tokens.clone(), head_dim, &mut rows);
        }
        let filter = filter.and_then(|filter| filter.keys(tokens.clone(), &rows, head_dim));
        let form = match (pairs, phase.keys) {
            (Some(pairs), _) => {
                let mut keys = PairKeys::default();
                pairs.push_keys(&rows, head_dim, &mut keys);
                let of_others =
                    phases.iter().zip(&prepared).find_map(|((other, _), prepared)| match &prepared.form {
                        Form::Pairs(PairRows { values, .. })
                            if std::ptr::addr_eq(other.values, phase.values)
                                && values.tokens.start <= tokens.start
                                && tokens.end <= values.tokens.end =>
                        {
                            Some(Arc::clone(values))
                        }
                        _ => None,
                    });
                let values = of_others.unwrap_or_else(|| {
                    read_rows(phase.values, tokens.clone(), scratch);
                    Arc::new(Values { tokens: tokens.clone(), pairs: pairs.values(scratch, head_dim) })
                });
                Form::Pairs(PairRows { arithmetic: pairs, keys, first: tokens.start, values })
            }
            (None, _) if filter.is_some() => {
                let mut values = Vec::new();
                read_rows(phase.values, tokens.clone(), &mut values);
                Form::Rows(DenseRows { first: tokens.start, keys: std::mem::take(&mut rows), values })
            }
            (None, Keys::Rows(_)) => Form::AsHeld,
            (None, Keys::Delta(matrix)) => Form::Streams(streams(options.simd, matrix, tokens.end)),
        };
        prepared.push(Prepared { form, filter });
    }
    prepared
}

/// All blocks up to the token `end`.
fn streams(simd: SimdLevel, matrix: &DeltaMatrix, end: usize) -> Vec<DeltaStream> {
    let blocks = 0..end.div_ceil(BLOCK_TOKENS);
    let unpack = |block| {
        let mut stream = DeltaStream::default();
        simd.stream(matrix, block, &mut stream);
        stream
    };
    blocks.map(unpack).collect()
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
