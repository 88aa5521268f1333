//! Attention of one tile of queries: flash-style, key block by key block, with an online softmax.
//!
//! A tile is [`query_tile`] consecutive queries times the heads that share a kv head, side by side in the lanes of the
//! vectors: `lane = head_in_group * queries + query`. Its keys come in *phases*: one for dense attention; sinks, exact
//! window and far history for the hybrid. A phase gives each query a range of keys and says how they are scored.

use std::{
    f32::consts::LOG2_E,
    ops::{Deref, Range},
};

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix, HeadSparsity, internal::PagedRows};
use deltallm_simd::tuning::ENOUGH_VALUES;

use crate::{
    AttentionError, AttentionOptions, HeadsView, SkipMargin,
    aligned::Aligned,
    decode::DecodeRows,
    prepare::{KeyForm, Prepared, ValueForm},
    simd::{
        self, Filter, KeyCodes, KeyStream, KeyStreams, MOST_CHANNELS, PairQueries, QueryCodes, delta, matmul,
        softmax, transpose::transpose,
    },
    window::{Part, Split},
};

/// Queries in a tile, for a group of `group` query heads per kv head: 64 to 128 lanes for groups of up to 32, so
/// that the tile of queries stays in the L1 or L2 cache. Tiles start at multiples of this position. Value skipping decides tile by tile.
///
/// ```
/// assert_eq!(deltallm_attn::query_tile(3), 32); // 32 queries of 3 heads are 96 lanes
/// ```
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

/// The phases of one kv head, in order.
#[derive(Clone, Copy)]
pub(crate) enum Phases<'a> {
    One([Phase<'a>; 1]),
    Three([Phase<'a>; 3]),
}

impl<'a> Deref for Phases<'a> {
    type Target = [Phase<'a>];

    fn deref(&self) -> &[Phase<'a>] {
        match self {
            Self::One(phases) => phases,
            Self::Three(phases) => phases,
        }
    }
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

// So many and what comes of one block more are still about a block, which is one part of `TilePart::accumulate`.
const _: () = assert!(ENOUGH_VALUES < BLOCK_TOKENS);

/// Working memory that is reused from tile to tile.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Scaled queries, `[head_dim, lanes]`: scores come out in units of ln 2.
    queries: Aligned,
    /// Scores, then weights, of keys whose values are still to be added, and room for another block of them:
    /// `[2 * BLOCK_TOKENS, lanes]`.
    scores: Aligned,
    /// These keys.
    waiting: Vec<usize>,
    /// Weighted sum of values so far, `[head_dim, lanes]`.
    sums: Aligned,
    /// Per lane: largest score, sum of weights, rescale factor, skip threshold.
    max: Aligned,
    total: Aligned,
    rescale: Aligned,
    thresholds: Aligned,
    key_rows: Vec<f32>,
    value_rows: Vec<f32>,
    /// Keys that come through the first pass.
    candidates: Vec<usize>,
    /// Keys that are scored together, and the places among them of those that are kept.
    picks: Vec<usize>,
    kept: Vec<usize>,
    /// Some of them as rows of where they are read from.
    rows: Vec<usize>,
    /// Per lane: first row of the block that its query sees, and the row after the last.
    starts: Aligned,
    ends: Aligned,
    /// For the first pass.
    codes: QueryCodes,
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
    let lanes = (queries * group).next_multiple_of(simd::lanes(options.isa));

    // The cap is a function of nats; its result changes the unit.
    let scale = options.scale * if options.softcap.is_none() { LOG2_E } else { 1.0 };
    scratch.queries.reset(head_dim * lanes, 0.0);
    for head in 0..group {
        let (rows, stride) = q.rows_from(tile.positions.start - first, tile.kv_head * group + head);
        let out = &mut scratch.queries[head * queries..];
        transpose(options.isa, rows, stride, [queries, head_dim], scale, out, lanes);
    }
    scratch.scores.resize(2 * BLOCK_TOKENS * lanes);
    scratch.sums.reset(head_dim * lanes, 0.0);
    scratch.max.reset(lanes, f32::NEG_INFINITY);
    scratch.total.reset(lanes, 0.0);
    scratch.rescale.reset(lanes, 1.0);

    let mut counts = HeadSparsity::default();
    let pairs = prepared.iter().find_map(|prepared| match &prepared.keys {
        KeyForm::Pairs(pairs) => Some(pairs.arithmetic),
        _ => None,
    });
    if let Some(pairs) = pairs {
        pairs.set_queries(&scratch.queries, lanes, &mut scratch.pair_queries);
    }
    let as_held = Prepared::default();
    for (i, phase) in phases.iter().enumerate() {
        let ranges: Vec<Range<usize>> = tile.positions.clone().map(|p| split.range(phase.part, p)).collect();
        let prepared = prepared.get(i).unwrap_or(&as_held);
        let part = TilePart { options, phase, prepared, tile, ranges: &ranges, lanes };
        part.attend(scratch, &mut counts);
    }

    scratch.rescale.iter_mut().zip(&*scratch.total).for_each(|(weight, total)| *weight = 1.0 / total);
    softmax::rescale(options.isa, &mut scratch.sums, &scratch.rescale);
    let mut rows = vec![0.0; queries * group * head_dim];
    for head in 0..group {
        let (sums, out) = (&scratch.sums[head * queries..], &mut rows[head * head_dim..]);
        transpose(options.isa, sums, lanes, [head_dim, queries], 1.0, out, group * head_dim);
    }
    // Inputs are finite, so anything else here is a score that left the range of f32.
    let real = &scratch.max[..queries * group];
    if !simd::all_finite(options.isa, real) || !simd::all_finite(options.isa, &rows) {
        return Err(AttentionError::Overflow);
    }
    Ok(TileOutput { rows, counts })
}

/// The keys that any of the ranges has.
pub(crate) fn union(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let filled = ranges.filter(|range| !range.is_empty());
    filled.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

/// A tile and one phase of its keys.
#[derive(Clone, Copy)]
struct TilePart<'a> {
    options: &'a AttentionOptions,
    phase: &'a Phase<'a>,
    prepared: &'a Prepared,
    tile: &'a Tile,
    /// The keys of each query of the tile.
    ranges: &'a [Range<usize>],
    lanes: usize,
}

impl TilePart<'_> {
    fn attend(self, scratch: &mut Scratch, counts: &mut HeadSparsity) {
        let Self { options, phase, prepared, tile, ranges, lanes } = self;
        let group = options.shape.group();
        let pairs = (ranges.iter().map(ExactSizeIterator::len).sum::<usize>() * group) as u64;
        counts.pairs += pairs;
        if phase.part != Part::Far {
            counts.exact_pairs += pairs;
        }
        if let Some(margin) = phase.skip_margin {
            // Lanes that stand for no query must keep nothing alive.
            scratch.thresholds.reset(lanes, 1e30);
            let margins = || tile.positions.clone().map(|position| margin.nats(position + 1, ranges.len()));
            let margins = (0..group).flat_map(|_| margins());
            for ((threshold, max), margin) in scratch.thresholds.iter_mut().zip(&*scratch.max).zip(margins) {
                *threshold = max - margin * LOG2_E;
            }
            counts.skipped_values += pairs;
        }
        let all = union(ranges.iter().cloned());
        match &prepared.filter {
            _ if all.is_empty() => {}
            Some(filter) => self.attend_candidates(filter, &all, scratch, counts),
            None => self.attend_blocks(&all, scratch, counts),
        }
        self.accumulate(scratch);
    }

    /// The keys that every query sees.
    fn seen_by_all(self) -> Range<usize> {
        let start = self.ranges.iter().map(|range| range.start).max().unwrap_or(0);
        start..self.ranges.iter().map(|range| range.end).min().unwrap_or(0)
    }

    /// Attends the keys `tokens` by way of a first pass in 8 bits.
    fn attend_candidates(
        self,
        keys: &KeyCodes,
        tokens: &Range<usize>,
        scratch: &mut Scratch,
        counts: &mut HeadSparsity,
    ) {
        let Some(filter) = Filter::of(self.options.isa) else { return };
        let Scratch { queries, codes, thresholds, candidates, .. } = &mut *scratch;
        filter.set_queries(keys, queries, self.lanes, codes);
        candidates.clear();
        filter.candidates(keys, tokens.clone(), codes, thresholds, candidates);
        let candidates = std::mem::take(candidates);
        let seen_by_all = self.seen_by_all();
        // Before, inside and behind what every query sees.
        let (before, rest) = candidates.split_at(candidates.partition_point(|t| *t < seen_by_all.start));
        let (inside, behind) = rest.split_at(rest.partition_point(|t| *t < seen_by_all.end));
        for (picks, whole) in [(before, false), (inside, true), (behind, false)] {
            for picks in picks.chunks(BLOCK_TOKENS) {
                scratch.picks.clear();
                scratch.picks.extend_from_slice(picks);
                self.attend_picks(whole, scratch, counts);
            }
        }
        scratch.candidates = candidates;
    }

    /// Attends the keys `tokens`, block by block.
    fn attend_blocks(self, tokens: &Range<usize>, scratch: &mut Scratch, counts: &mut HeadSparsity) {
        let seen_by_all = self.seen_by_all();
        let mut start = tokens.start;
        while start < tokens.end {
            let block = start..tokens.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
            start = block.end;
            let whole = seen_by_all.start <= block.start && block.end <= seen_by_all.end;
            scratch.picks.clear();
            scratch.picks.extend(block);
            self.attend_picks(whole, scratch, counts);
        }
    }

    /// Attends the picked keys, which are in ascending order; `whole` if every query sees them.
    fn attend_picks(self, whole: bool, scratch: &mut Scratch, counts: &mut HeadSparsity) {
        let Self { options, phase, prepared, ranges, lanes, .. } = self;
        self.score(whole, scratch);
        if !whole {
            let Scratch { scores, waiting, picks, starts, ends, thresholds, kept, .. } = &mut *scratch;
            let scores = &mut scores[waiting.len() * lanes..][..picks.len() * lanes];
            let lane_ranges = || (0..options.shape.group()).flat_map(|_| ranges);
            let row = |token: usize| picks.partition_point(|pick| *pick < token) as f32;
            starts.reset(lanes, 0.0);
            ends.reset(lanes, 0.0);
            starts.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.start));
            ends.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.end));
            softmax::mask(options.isa, scores, starts, ends);
            if phase.skip_margin.is_some() {
                softmax::keep_above(options.isa, scores, thresholds, kept);
            }
        }
        self.count_kept(whole, scratch, counts);
        let Scratch { waiting, picks, kept, .. } = &mut *scratch;
        waiting.extend(kept.iter().map(|place| picks[*place]));
        // Rows that are read as they are held lie adjacent only within a block.
        if matches!(prepared.values, ValueForm::AsHeld) || waiting.len() >= ENOUGH_VALUES {
            self.accumulate(scratch);
        }
    }

    /// Takes the keys that were kept, `whole` ones seen by every query, out of the count of those that are skipped.
    fn count_kept(self, whole: bool, scratch: &Scratch, counts: &mut HeadSparsity) {
        if self.phase.skip_margin.is_some() {
            let sees = |token: usize| self.ranges.iter().filter(|range| range.contains(&token)).count();
            let kept: usize = match whole {
                true => scratch.kept.len() * self.ranges.len(),
                false => scratch.kept.iter().map(|place| sees(scratch.picks[*place])).sum(),
            };
            counts.skipped_values -= (kept * self.options.shape.group()) as u64;
        }
    }

    /// Scores the picked keys, behind the scores of those that are waiting: consecutive ones of a block, or any if they are
    /// prepared as rows. Where something may be skipped and every query sees the `whole` of them, the scores of those that
    /// are above the threshold of any query, packed; otherwise all. `kept` says which.
    fn score(self, whole: bool, scratch: &mut Scratch) {
        let Self { options, phase, prepared, lanes, .. } = self;
        let (isa, head_dim) = (options.isa, options.shape.head_dim());
        let Scratch {
            queries, pair_queries, scores, waiting, thresholds, picks, rows, kept, key_rows, ..
        } = &mut *scratch;
        let (Some(first), count) = (picks.first().copied(), picks.len()) else { return };
        let scores = &mut scores[waiting.len() * lanes..][..count * lanes];
        let thresholds: Option<&[f32]> = (phase.skip_margin.is_some() && whole).then_some(thresholds);
        // A cap changes the scores after the product and before the test.
        let fused = thresholds.filter(|_| options.softcap.is_none());
        let mut tested = false;
        let (block, skip) = (first / BLOCK_TOKENS, first % BLOCK_TOKENS);
        let through_deltas = |keys: KeyStream, scores: &mut [f32], kept: &mut Vec<usize>| {
            let done =
                fused.is_some_and(|limits| delta::survivors(isa, keys, skip, queries, limits, scores, kept));
            if !done {
                delta::scores(isa, keys, skip, queries, lanes, scores);
            }
            done
        };
        // Keys that are rows of f32 are left for later.
        let keys = match (&prepared.keys, phase.keys) {
            (KeyForm::Pairs(pairs), _) => {
                number_from(pairs.first, picks.iter().copied(), rows);
                pairs.arithmetic.scores(&pairs.keys, rows, pair_queries, fused, scores, kept);
                tested = fused.is_some();
                None
            }
            (KeyForm::Streams(keys), _) => {
                tested = through_deltas(keys.block(block), scores, kept);
                None
            }
            (KeyForm::Rows(dense), _) => {
                number_from(dense.first, picks.iter().copied(), rows);
                Some(&dense.rows[..])
            }
            (KeyForm::AsHeld, Keys::Rows(held)) => {
                number_from(first, picks.iter().copied(), rows);
                Some(held.read(first..first + count, key_rows))
            }
            (KeyForm::AsHeld, Keys::Delta(matrix)) => {
                matrix.reconstruct(block, key_rows);
                if head_dim <= MOST_CHANNELS {
                    let mut streams = KeyStreams::new(head_dim);
                    streams.push_block(isa, key_rows);
                    tested = through_deltas(streams.block(0), scores, kept);
                    None
                } else {
                    number_from(first - skip, picks.iter().copied(), rows);
                    Some(&key_rows[..])
                }
            }
        };
        if let Some(keys) = keys {
            match fused {
                Some(limits) => matmul::scores_above(isa, keys, rows, queries, lanes, limits, scores, kept),
                None => matmul::scores(isa, keys, rows, queries, lanes, scores),
            }
            tested = fused.is_some();
        }
        if tested {
            return;
        }
        if let Some(cap) = options.softcap {
            softmax::softcap(isa, scores, cap);
        }
        match thresholds {
            Some(limits) => softmax::keep_above(isa, scores, limits, kept),
            None => {
                kept.clear();
                kept.extend(0..count);
            }
        }
    }

    /// Adds the values of the keys that are waiting, weighted by their scores.
    fn accumulate(self, scratch: &mut Scratch) {
        let Self { options, phase, prepared, lanes, .. } = self;
        let (isa, head_dim) = (options.isa, options.shape.head_dim());
        let Scratch { scores, waiting, sums, max, total, rescale, rows, value_rows, .. } = scratch;
        let (paired, weights) = (&mut scratch.pair_values, &mut scratch.pair_weights);
        let Some(first) = waiting.first().copied() else { return };
        let scores = &mut scores[..waiting.len() * lanes];
        if softmax::update(isa, scores, lanes, max, total, rescale) {
            softmax::rescale(isa, sums, rescale);
        }
        // In parts of equal size, each as much as a sum in 16 bits takes.
        let part = waiting.len().div_ceil(waiting.len().div_ceil(BLOCK_TOKENS));
        for (tokens, scores) in waiting.chunks(part).zip(scores.chunks(part * lanes)) {
            match &prepared.values {
                ValueForm::Pairs(values) => {
                    number_from(values.tokens.start, tokens.iter().copied(), rows);
                    values.arithmetic.pair(&values.pairs, rows, head_dim, paired);
                    values.arithmetic.weights(scores, lanes, weights);
                    values.arithmetic.accumulate(&values.pairs, paired, weights, lanes, sums);
                }
                ValueForm::Rows(dense) => {
                    number_from(dense.first, tokens.iter().copied(), rows);
                    matmul::accumulate(isa, &dense.rows, rows, scores, lanes, sums);
                }
                ValueForm::AsHeld => {
                    number_from(first, tokens.iter().copied(), rows);
                    let last = tokens.last().map_or(first, |token| token + 1);
                    let values = phase.values.read(first..last, value_rows);
                    matmul::accumulate(isa, values, rows, scores, lanes, sums);
                }
            }
        }
        waiting.clear();
    }
}

/// Tokens as rows of a matrix whose first row is that of the token `first`.
fn number_from(first: usize, tokens: impl Iterator<Item = usize>, rows: &mut Vec<usize>) {
    rows.clear();
    rows.extend(tokens.map(|token| token - first));
}
