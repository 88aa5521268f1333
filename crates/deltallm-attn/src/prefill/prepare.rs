//! What is done once for many tiles: keys and values brought into the form in which tiles read them.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, internal::StoredRows};

use super::{
    deltas::{HeldDeltas, streams},
    first_pass::{FirstPass, KeyCodes},
    keys::TileKeys,
    pairs::{
        PairKeys, Pairs,
        tile::{TilePairKeys, TilePairValues},
    },
    rows::{ConvertedRows, HeldRows, read_rows},
    stream::MOST_NUMBERED_CHANNELS,
    values::TileValues,
};
use crate::{
    options::Settings,
    segment::{Segment, SegmentKeys, TokenRows},
};

/// Some of a segment's keys and values, ready for tiles.
pub(crate) struct Prepared<'a> {
    pub(crate) keys: Box<dyn TileKeys + 'a>,
    pub(crate) values: Box<dyn TileValues + 'a>,
    /// Codes for the first pass, where values may be skipped.
    pub(crate) first_pass: Option<KeyCodes>,
}

impl<'a> Prepared<'a> {
    /// For a single tile, for which a conversion would not pay: rows are read block by block.
    pub(crate) fn as_held(segment: &Segment<'a>) -> Self {
        Self { keys: held(segment.keys), values: Box::new(HeldRows(segment.values)), first_pass: None }
    }
}

fn held<'a>(keys: SegmentKeys<'a>) -> Box<dyn TileKeys + 'a> {
    match keys {
        SegmentKeys::Rows(rows) => Box::new(HeldRows(rows)),
        SegmentKeys::Deltas(matrix) => Box::new(HeldDeltas(matrix)),
    }
}

/// Prepares the keys and values `tokens` of a segment, for products in 16 bits if there are `pairs`.
pub(crate) fn prepare<'a>(
    options: &Settings,
    pairs: Option<Pairs>,
    segment: &Segment<'a>,
    tokens: Range<usize>,
    rows: &mut Vec<f32>,
) -> Prepared<'a> {
    let (isa, head_dim, first) = (options.isa, options.shape.head_dim(), tokens.start);
    // A cap changes the scores after the product, and so what the product says about them.
    let skips = segment.skip_margin.is_some() && options.softcap.is_none();
    let first_pass = FirstPass::of(isa).filter(|_| skips);
    // Whether keys are scored through their deltas: their scores are there when they have been tested, without a first pass.
    // Not where there is a first pass: the choice changes the last bits of scores, so it is the same for all CPUs of an
    // instruction set, and no matter of timing. On a Xeon with AVX-512 a key costs about 50 cycles in the first pass and 125 to
    // 190 through its deltas. On Zen 4 the deltas are faster: prompts of 1024 to 4096 tokens in f32 took 1.31 to 2.00 times
    // less time than dense ones with them, and take 1.20 to 1.87 times less with the first pass (docs/results/tried.md).
    let deltas = match segment.keys {
        SegmentKeys::Deltas(matrix) if pairs.is_none() && matrix.channels() <= MOST_NUMBERED_CHANNELS => {
            Some(matrix).filter(|_| !skips || first_pass.is_none())
        }
        _ => None,
    };
    let first_pass = first_pass.filter(|_| deltas.is_none());
    let converts_keys =
        matches!(segment.keys, SegmentKeys::Rows(keys) if are_converted(keys, tokens.clone()));
    if first_pass.is_some() || pairs.is_some() || converts_keys {
        read_keys(&segment.keys, tokens.clone(), head_dim, rows);
    }
    let first_pass = first_pass.and_then(|pass| pass.keys(tokens.clone(), rows, head_dim));
    let keys: Box<dyn TileKeys> = match (pairs, deltas) {
        (Some(pairs), _) => {
            let mut keys = PairKeys::default();
            pairs.push_keys(rows, head_dim, &mut keys);
            Box::new(TilePairKeys { pairs, first, keys })
        }
        (None, Some(matrix)) => Box::new(streams(isa, matrix, tokens.clone())),
        _ if first_pass.is_some() || converts_keys => {
            Box::new(ConvertedRows { first, rows: std::mem::take(rows) })
        }
        _ => held(segment.keys),
    };
    let values: Box<dyn TileValues> = match pairs {
        Some(pairs) => {
            read_rows(segment.values, tokens.clone(), rows);
            let values = pairs.values(rows, options.shape.value_dim());
            Box::new(TilePairValues { pairs, tokens, values })
        }
        // Those that are left of several blocks are multiplied together; and what is no f32 is converted once, not by every tile.
        None if skips && (deltas.is_some() || first_pass.is_some())
            || are_converted(segment.values, tokens.clone()) =>
        {
            let mut rows = Vec::new();
            read_rows(segment.values, tokens, &mut rows);
            Box::new(ConvertedRows { first, rows })
        }
        None => Box::new(HeldRows(segment.values)),
    };
    Prepared { keys, values, first_pass }
}

/// Whether rows have to be converted to f32.
fn are_converted(rows: &dyn TokenRows, tokens: Range<usize>) -> bool {
    rows.stored(tokens).is_some_and(|(rows, _)| !matches!(rows, StoredRows::F32(_)))
}

/// Keys as f32, `[tokens, head_dim]`.
fn read_keys(keys: &SegmentKeys, tokens: Range<usize>, head_dim: usize, out: &mut Vec<f32>) {
    let matrix = match keys {
        SegmentKeys::Rows(rows) => return read_rows(*rows, tokens, out),
        SegmentKeys::Deltas(matrix) => matrix,
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
