//! Attention of one tile of queries: flash-style, key block by key block, with an online softmax.
//!
//! A tile is [`query_tile`] consecutive queries times the heads that share a kv head, side by side in the lanes of the
//! vectors: `lane = head_in_group * queries + query`. Its keys come in *phases*: one for dense attention; sinks, exact
//! window and far history for the hybrid. A phase gives each query a range of keys and says how they are scored.

use std::{f32::consts::LOG2_E, ops::Range};

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix, DeltaStream, GroupedKeys, HeadSparsity, PagedRows};

use crate::{
    AttentionError, AttentionOptions, HeadsView, SimdLevel, SkipMargin,
    aligned::Aligned,
    decode::DecodeRows,
    prepare::{PairPhase, Prepared},
    simd::{PairQueries, pair_values},
    window::{Part, Split},
};

/// Queries in a tile, for a group of `group` query heads per kv head: 64 to 128 lanes for groups of up to 32, so
/// that the tile of queries stays in the L1 or L2 cache. Tiles start at multiples of this position. Value skipping decides tile by tile.
pub fn query_tile(group: usize) -> usize {
    (64 / group.max(1)).next_power_of_two().clamp(4, 64)
}

/// Rows of one kv head, addressed by token.
pub(crate) trait Rows: DecodeRows + Sync {
    /// `[tokens, head_dim]` as f32, borrowed or converted into `scratch`.
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Rows for PagedRows {
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.read(tokens, scratch)
    }
}

impl Rows for GroupedKeys {
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.read(tokens, scratch)
    }
}

/// One head of somebody else's keys or values.
pub(crate) struct HeadRows<'v> {
    pub(crate) view: HeadsView<'v>,
    pub(crate) head: usize,
}

impl Rows for HeadRows<'_> {
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.clear();
        tokens.for_each(|token| scratch.extend_from_slice(self.view.row(token, self.head)));
        scratch
    }
}

/// How the keys of a phase are scored.
#[derive(Clone, Copy)]
pub(crate) enum Keys<'a> {
    /// `q . k` with the keys as they are held.
    Rows(&'a dyn Rows),
    /// `q . khat` through the deltas.
    Delta(&'a DeltaMatrix),
}

/// Some of the keys of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Phase<'a> {
    pub(crate) keys: Keys<'a>,
    pub(crate) values: &'a dyn Rows,
    pub(crate) part: Part,
    /// Skip values that are by this margin or more below the best score of the phases before (`docs/method.md`, equation 5).
    pub(crate) skip_margin: Option<SkipMargin>,
}

/// One tile of one kv head.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    pub(crate) kv_head: usize,
    /// Positions of the queries in the sequence.
    pub(crate) positions: Range<usize>,
}

/// Result of a tile.
pub(crate) struct TileOutput {
    /// `[queries, group, head_dim]`.
    pub(crate) rows: Vec<f32>,
    /// Pairs, exact pairs and skipped values.
    pub(crate) counts: HeadSparsity,
}

/// Working memory that is reused from tile to tile.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Scaled queries, `[head_dim, lanes]`: scores come out in units of ln 2.
    queries: Aligned,
    /// Scores, then weights, of a block: `[BLOCK_TOKENS, lanes]`.
    scores: Aligned,
    /// Weighted sum of values so far, `[head_dim, lanes]`.
    sums: Aligned,
    /// Per lane: largest score, sum of weights, rescale factor, skip threshold, score of the key frame.
    max: Aligned,
    total: Aligned,
    rescale: Aligned,
    thresholds: Aligned,
    frame: Aligned,
    key_rows: Vec<f32>,
    value_rows: Vec<f32>,
    kept_values: Vec<f32>,
    /// Rows of the block whose values are used.
    kept: Vec<usize>,
    /// Per lane: first row of the block that its query sees, and the row after the last.
    starts: Aligned,
    ends: Aligned,
    stream: DeltaStream,
    /// For products of pairs: the queries, and values and weights of a block.
    pair_queries: PairQueries,
    pair_values: Vec<u32>,
    pair_weights: Vec<u32>,
}

/// Attends the tile's queries to the keys of all phases, in order. `first` is the position of `q`'s first token, and
/// `prepared` has the phases' keys and values in another form, if they were prepared.
#[expect(clippy::too_many_arguments, reason = "one call's inputs, and one tile of it")]
pub(crate) fn attend_tile(
    options: &AttentionOptions,
    q: &HeadsView,
    first: usize,
    tile: &Tile,
    split: &Split,
    phases: &[Phase],
    prepared: &[Prepared],
    scratch: &mut Scratch,
) -> Result<TileOutput, AttentionError> {
    let (group, head_dim) = (options.shape.group(), options.shape.head_dim());
    let queries = tile.positions.len();
    let lanes = (queries * group).next_multiple_of(options.simd.lanes());

    // The cap is a function of nats; its result changes the unit.
    let scale = options.scale * if options.softcap.is_none() { LOG2_E } else { 1.0 };
    scratch.queries.reset(head_dim * lanes, 0.0);
    for head in 0..group {
        let (rows, stride) = q.rows_from(tile.positions.start - first, tile.kv_head * group + head);
        let out = &mut scratch.queries[head * queries..];
        options.simd.transpose(rows, stride, [queries, head_dim], scale, out, lanes);
    }
    scratch.sums.reset(head_dim * lanes, 0.0);
    scratch.max.reset(lanes, f32::NEG_INFINITY);
    scratch.total.reset(lanes, 0.0);
    scratch.rescale.reset(lanes, 1.0);
    scratch.frame.reset(lanes, 0.0);

    let mut counts = HeadSparsity::default();
    if let Some(Prepared::Pairs(pairs)) = prepared.first() {
        pairs.arithmetic.set_queries(&scratch.queries, lanes, &mut scratch.pair_queries);
    }
    for (i, phase) in phases.iter().enumerate() {
        let ranges: Vec<Range<usize>> = tile.positions.clone().map(|p| split.range(phase.part, p)).collect();
        let prepared = prepared.get(i).unwrap_or(&Prepared::Rows);
        attend_phase(options, phase, prepared, tile, &ranges, lanes, scratch, &mut counts);
    }

    scratch.rescale.iter_mut().zip(&*scratch.total).for_each(|(weight, total)| *weight = 1.0 / total);
    options.simd.rescale(&mut scratch.sums, &scratch.rescale);
    let mut rows = vec![0.0; queries * group * head_dim];
    for head in 0..group {
        let (sums, out) = (&scratch.sums[head * queries..], &mut rows[head * head_dim..]);
        options.simd.transpose(sums, lanes, [head_dim, queries], 1.0, out, group * head_dim);
    }
    // Inputs are finite, so anything else here is a score that left the range of f32.
    let real = &scratch.max[..queries * group];
    if !real.iter().chain(&rows).all(|x| x.is_finite()) {
        return Err(AttentionError::Overflow);
    }
    Ok(TileOutput { rows, counts })
}

/// The keys that any of the ranges has.
pub(crate) fn union(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let filled = ranges.filter(|range| !range.is_empty());
    filled.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// `ranges` are the keys of each query of the tile.
#[expect(clippy::too_many_arguments, reason = "one tile, one phase, and the sums so far")]
fn attend_phase(
    options: &AttentionOptions,
    phase: &Phase,
    prepared: &Prepared,
    tile: &Tile,
    ranges: &[Range<usize>],
    lanes: usize,
    scratch: &mut Scratch,
    counts: &mut HeadSparsity,
) {
    let (group, simd) = (options.shape.group(), options.simd);
    let pairs: usize = ranges.iter().map(|range| range.len() * group).sum();
    counts.pairs += pairs as u64;
    if phase.part != Part::Far {
        counts.exact_pairs += pairs as u64;
    }
    if let Some(margin) = phase.skip_margin {
        // Lanes that stand for no query must keep nothing alive.
        scratch.thresholds.reset(lanes, 1e30);
        let margins = || tile.positions.clone().map(|position| margin.nats(position + 1, ranges.len()));
        let margins = (0..group).flat_map(|_| margins());
        for ((threshold, max), margin) in scratch.thresholds.iter_mut().zip(&*scratch.max).zip(margins) {
            *threshold = max - margin * LOG2_E;
        }
    }
    let all = union(ranges.iter().cloned());
    let mut start = all.start;
    while start < all.end {
        let tokens = start..all.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
        start = tokens.end;
        let whole = ranges.iter().all(|range| range.start <= tokens.start && tokens.end <= range.end);
        scratch.scores.resize(BLOCK_TOKENS * lanes);

        score(options, phase, prepared, &tokens, whole, lanes, scratch);
        if !whole {
            let lane_ranges = || (0..group).flat_map(|_| ranges);
            let row = |token: usize| (token.clamp(tokens.start, tokens.end) - tokens.start) as f32;
            scratch.starts.reset(lanes, 0.0);
            scratch.ends.reset(lanes, 0.0);
            scratch.starts.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.start));
            scratch.ends.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.end));
            simd.mask(&mut scratch.scores[..tokens.len() * lanes], &scratch.starts, &scratch.ends);
            if phase.skip_margin.is_some() {
                keep_rows(scratch, lanes, simd);
            }
        }
        if phase.skip_margin.is_some() {
            let kept = scratch.kept.iter().map(|row| match whole {
                true => ranges.len(),
                false => ranges.iter().filter(|range| range.contains(&(tokens.start + row))).count(),
            });
            let seen = ranges.iter().map(|r| r.end.min(tokens.end).saturating_sub(r.start.max(tokens.start)));
            counts.skipped_values += ((seen.sum::<usize>() - kept.sum::<usize>()) * group) as u64;
        }
        if !scratch.kept.is_empty() {
            accumulate(options, phase, prepared, &tokens, lanes, scratch);
        }
    }
}

/// Scores the keys `tokens`, all of one block. Where something may be skipped and every query sees the `whole` of them,
/// the scores of the keys that are above the threshold of any query, packed; otherwise all. `kept` says which.
fn score(
    options: &AttentionOptions,
    phase: &Phase,
    prepared: &Prepared,
    tokens: &Range<usize>,
    whole: bool,
    lanes: usize,
    scratch: &mut Scratch,
) {
    let simd = options.simd;
    let Scratch { queries, scores, frame, thresholds, kept, key_rows, stream, pair_queries, .. } =
        &mut *scratch;
    let thresholds: Option<&[f32]> = (phase.skip_margin.is_some() && whole).then_some(thresholds);
    // A cap changes the scores after the product and before the test.
    let fused = thresholds.filter(|_| options.softcap.is_none());
    let mut tested = fused.is_some();
    kept.clear();
    if let Prepared::Pairs(pairs) = prepared {
        let rows = tokens.start - pairs.tokens.start..tokens.end - pairs.tokens.start;
        pairs.arithmetic.scores(&pairs.keys, rows, pair_queries, fused, scores, kept);
    } else {
        match phase.keys {
            Keys::Rows(rows) => {
                simd.scores(rows.read(tokens.clone(), key_rows), queries, lanes, scores);
                tested = false;
            }
            Keys::Delta(matrix) => {
                let block = tokens.start / BLOCK_TOKENS;
                let stream = match prepared {
                    Prepared::Streams(streams) => &streams[block],
                    _ => {
                        matrix.stream(block, stream);
                        stream
                    }
                };
                tested = match fused {
                    Some(limits) if tokens.len() == stream.len() => {
                        simd.delta_survivors(stream, queries, lanes, frame, limits, scores, kept)
                    }
                    _ => false,
                };
                if !tested {
                    let (skip, scores) = (tokens.start % BLOCK_TOKENS, &mut scores[..tokens.len() * lanes]);
                    simd.delta_scores(stream, skip, queries, lanes, frame, scores);
                }
            }
        }
    }
    if tested {
        return;
    }
    kept.clear();
    kept.extend(0..tokens.len());
    if let Some(cap) = options.softcap {
        simd.softcap(&mut scores[..tokens.len() * lanes], cap);
    }
    if thresholds.is_some() {
        keep_rows(scratch, lanes, simd);
    }
}

/// Adds the values of the kept keys, weighted by their scores.
fn accumulate(
    options: &AttentionOptions,
    phase: &Phase,
    prepared: &Prepared,
    tokens: &Range<usize>,
    lanes: usize,
    scratch: &mut Scratch,
) {
    let (simd, head_dim) = (options.simd, options.shape.head_dim());
    let Scratch { scores, sums, max, total, rescale, kept, value_rows, kept_values, .. } = scratch;
    let (paired, weights) = (&mut scratch.pair_values, &mut scratch.pair_weights);
    let scores = &mut scores[..kept.len() * lanes];
    if simd.softmax(scores, lanes, max, total, rescale) {
        simd.rescale(sums, rescale);
    }
    if let Prepared::Pairs(pairs) = prepared {
        let PairPhase { arithmetic, values: rows, tokens: all, .. } = pairs;
        let block = tokens.start / BLOCK_TOKENS - all.start / BLOCK_TOKENS;
        let scales = rows.scales.get(block * head_dim..(block + 1) * head_dim).unwrap_or(&[]);
        let rows = &rows.rows[(tokens.start - all.start) * head_dim..(tokens.end - all.start) * head_dim];
        pair_values(rows, head_dim, kept, paired);
        arithmetic.weights(scores, lanes, weights);
        return arithmetic.accumulate(paired, scales, weights, lanes, sums);
    }
    let values = phase.values.read(tokens.clone(), value_rows);
    if kept.len() == tokens.len() {
        return simd.accumulate(values, scores, lanes, sums);
    }
    kept_values.clear();
    for row in &*kept {
        kept_values.extend_from_slice(&values[row * head_dim..][..head_dim]);
    }
    simd.accumulate(kept_values, scores, lanes, sums);
}

/// Of the kept rows, all of which are there, keeps those that are above the threshold of any query.
fn keep_rows(scratch: &mut Scratch, lanes: usize, simd: SimdLevel) {
    let Scratch { scores, kept, thresholds, .. } = scratch;
    let mut count = 0;
    kept.retain(|&row| {
        let keep = simd.any_above(&scores[row * lanes..][..lanes], thresholds);
        if keep {
            scores.copy_within(row * lanes..(row + 1) * lanes, count * lanes);
            count += 1;
        }
        keep
    });
}
