//! Attention of one tile of queries: flash-style, key block by key block, with an online softmax.
//!
//! A tile is consecutive queries of one or all of the heads that share a kv head ([`TileSize`]), side by side in the lanes of the
//! vectors: `lane = head * queries + query`. Its keys come in [segments](crate::segment); a segment gives each query a
//! range of keys and says how they are scored.

use std::{f32::consts::LOG2_E, ops::Range};

use deltallm_core::{BLOCK_TOKENS, HeadSparsity};
use deltallm_simd::{Isa, tuning::ENOUGH_VALUES};

use super::{
    aligned::Aligned,
    first_pass::{FirstPass, KeyCodes, QueryCodes},
    keys::{KeyScratch, TileQueries},
    lanes::{all_finite, lanes},
    pairs::{PairQueries, Pairs},
    prepare::Prepared,
    softmax,
    transpose::transpose,
    values::ValueScratch,
};
use crate::{
    AttentionError, HeadsView,
    options::Settings,
    output::log_sum,
    ranges::{union, within},
    segment::Segment,
    softcap::softcap,
    window::{Part, Split},
};

/// Positions whose queries decide together which values to skip, each head for itself. They start at multiples of this position. In calls of
/// fewer tokens all heads that share a kv head decide together.
pub const QUERY_TILE: usize = 32;

/// The tiles of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TileSize {
    /// Positions.
    pub(crate) queries: usize,
    /// Query heads of a kv head.
    pub(crate) heads: usize,
}

impl TileSize {
    /// For a call of so many tokens, and `group` query heads per kv head. A tile is 64 to 128 lanes for groups of up to 32, so that keys are
    /// read for many queries at a time, and these stay in the L1 or L2 cache. Where values are skipped, what one query needs all of its tile
    /// must take: so a head stands alone, unless there are too few queries for keys to be read for each head.
    pub(crate) fn of(tokens: usize, group: usize, skips: bool) -> Self {
        let all_heads = (64 / group.max(1)).next_power_of_two().clamp(4, 64);
        match skips {
            true if tokens >= QUERY_TILE => Self { queries: QUERY_TILE, heads: 1 },
            true => Self { queries: all_heads.min(QUERY_TILE), heads: group },
            false => Self { queries: all_heads, heads: group },
        }
    }
}

/// One tile of one kv head.
#[derive(Debug)]
pub(crate) struct Tile {
    pub(crate) kv_head: usize,
    /// Query heads, of those of the kv head.
    pub(crate) heads: Range<usize>,
    /// Positions of the queries in the sequence.
    pub(crate) positions: Range<usize>,
    /// What has been attended, from the first keys to the last.
    state: Option<State>,
}

/// Result of a tile.
pub(crate) struct TileOutput {
    /// `[queries, heads, value_dim]`.
    pub(crate) rows: Vec<f32>,
    /// The logarithm of the sum of each query's weights, `[queries, heads]`.
    pub(crate) log_sums: Vec<f32>,
    /// Pairs, exact pairs and skipped values.
    pub(crate) counts: HeadSparsity,
}

// Fewer than `ENOUGH_VALUES` pending keys and one more block must fit `Scratch::scores`, which has room for two blocks.
const _: () = assert!(ENOUGH_VALUES < BLOCK_TOKENS);

/// A tile's queries, and what has been attended so far.
#[derive(Debug)]
struct State {
    queries: TileQueries,
    /// Weighted sum of values so far, `[value_dim, lanes]`.
    sums: Aligned,
    /// Per lane: largest score, sum of weights, skip threshold.
    max: Aligned,
    total: Aligned,
    thresholds: Aligned,
    counts: HeadSparsity,
}

impl State {
    fn new(isa: Isa) -> Self {
        let none = Aligned::default;
        let queries = TileQueries { isa, lanes: 0, rows: none(), pairs: PairQueries::default() };
        let [sums, max, total, thresholds] = [none(), none(), none(), none()];
        Self { queries, sums, max, total, thresholds, counts: HeadSparsity::default() }
    }
}

/// Working memory that is reused from tile to tile.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// That of a tile that has been finished, for the next one.
    state: Option<State>,
    /// Scores, then weights, of keys whose values are still to be added, and room for another block of them:
    /// `[2 * BLOCK_TOKENS, lanes]`.
    scores: Aligned,
    /// These keys.
    pending: Vec<usize>,
    /// Per lane: rescale factor.
    rescale: Aligned,
    /// Keys that come through the first pass.
    candidates: Vec<usize>,
    /// Keys that are scored together, and the places among them of those that are kept.
    tokens: Vec<usize>,
    kept: Vec<usize>,
    /// Per lane: first row of the block that its query sees, and the row after the last.
    starts: Aligned,
    ends: Aligned,
    /// For the first pass.
    codes: QueryCodes,
    keys: KeyScratch,
    values: ValueScratch,
}

/// What a call asks of all its tiles.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) options: &'a Settings,
    pub(crate) q: &'a HeadsView<'a>,
    /// Position of `q`'s first token.
    pub(crate) first: usize,
    pub(crate) split: &'a Split,
    /// The products in 16 bits for which keys, values and queries are prepared.
    pub(crate) pairs: Option<Pairs>,
}

/// Some tokens of a segment, prepared.
#[derive(Clone, Copy)]
pub(crate) struct PreparedPart<'a> {
    pub(crate) segment: &'a Segment<'a>,
    pub(crate) tokens: &'a Range<usize>,
    pub(crate) prepared: &'a Prepared<'a>,
}

impl Tile {
    pub(crate) fn new(kv_head: usize, heads: Range<usize>, positions: Range<usize>) -> Self {
        Self { kv_head, heads, positions, state: None }
    }

    /// Attends the tile's queries to some more keys, in the order of the segments; the answer comes with the `last` of them.
    pub(crate) fn attend<'a>(
        &mut self,
        call: Call,
        parts: impl Iterator<Item = PreparedPart<'a>>,
        last: bool,
        scratch: &mut Scratch,
    ) -> Result<Option<TileOutput>, AttentionError> {
        let Call { options, split, .. } = call;
        let mut state = self.state.take().unwrap_or_else(|| {
            self.begin(call, scratch.state.take().unwrap_or_else(|| State::new(options.isa)))
        });
        scratch.scores.resize(2 * BLOCK_TOKENS * state.queries.lanes);
        scratch.rescale.reset(state.queries.lanes, 1.0);
        for PreparedPart { segment, tokens, prepared } in parts {
            let sees = |position| split.range(segment.part, position);
            let ranges: Vec<Range<usize>> =
                self.positions.clone().map(|position| within(&sees(position), tokens)).collect();
            let begins = union(self.positions.clone().map(sees)).start >= tokens.start;
            let part = TilePart { options, segment, prepared, tile: self, ranges: &ranges };
            part.attend(begins, &mut state, scratch);
        }
        if last {
            return self.finish(options, state, scratch).map(Some);
        }
        self.state = Some(state);
        Ok(None)
    }

    /// The queries in their lanes, and nothing attended yet.
    fn begin(&self, call: Call, mut state: State) -> State {
        let options = call.options;
        let (heads, count) = (self.heads.len(), self.positions.len());
        let lanes = (count * heads).next_multiple_of(lanes(options.isa));
        take_queries(call, self, lanes, &mut state.queries);
        state.sums.reset(options.shape.value_dim() * lanes, 0.0);
        state.max.reset(lanes, f32::NEG_INFINITY);
        state.total.reset(lanes, 0.0);
        if let Some(logits) = &options.sink_logits {
            let first = self.kv_head * options.shape.group() + self.heads.start;
            let logits = logits[first..][..heads].iter().flat_map(|x| std::iter::repeat_n(x, count));
            state.max.iter_mut().zip(logits).for_each(|(max, logit)| *max = logit * LOG2_E);
            state.total[..count * heads].fill(1.0);
        }
        state.counts = HeadSparsity::default();
        state
    }

    fn finish(
        &self,
        options: &Settings,
        mut state: State,
        scratch: &mut Scratch,
    ) -> Result<TileOutput, AttentionError> {
        let (isa, heads, value_dim) = (options.isa, self.heads.len(), options.shape.value_dim());
        let count = self.positions.len();
        let State { queries, sums, max, total, counts, .. } = &mut state;
        let (lanes, counts) = (queries.lanes, *counts);
        scratch.rescale.iter_mut().zip(&**total).for_each(|(weight, total)| *weight = 1.0 / total);
        softmax::rescale(isa, sums, &scratch.rescale);
        let mut rows = vec![0.0; count * heads * value_dim];
        for head in 0..heads {
            let (sums, out) = (&sums[head * count..], &mut rows[head * value_dim..]);
            transpose(isa, sums, lanes, [value_dim, count], 1.0, out, heads * value_dim);
        }
        // Inputs are finite, so anything else here is a score that left the range of f32.
        let real = &max[..count * heads];
        if !all_finite(isa, real) || !all_finite(isa, &rows) {
            return Err(AttentionError::Overflow);
        }
        let log_sums = (0..count).flat_map(|query| (0..heads).map(move |head| head * count + query));
        let log_sums = log_sums.map(|lane| log_sum(max[lane], total[lane])).collect();
        scratch.state = Some(state);
        Ok(TileOutput { rows, log_sums, counts })
    }
}

/// The queries of a tile in its lanes, scaled; and in 16 bits where keys are.
fn take_queries(call: Call, tile: &Tile, lanes: usize, out: &mut TileQueries) {
    let Call { options, q, first, pairs, .. } = call;
    let (isa, head_dim, count) = (options.isa, options.shape.head_dim(), tile.positions.len());
    let first_head = tile.kv_head * options.shape.group() + tile.heads.start;
    // The cap is a function of nats; its result changes the unit.
    let scale = options.scale * if options.softcap.is_none() { LOG2_E } else { 1.0 };
    out.lanes = lanes;
    out.rows.reset(head_dim * lanes, 0.0);
    for head in 0..tile.heads.len() {
        let (queries, stride) = q.rows_from(tile.positions.start - first, first_head + head);
        transpose(isa, queries, stride, [count, head_dim], scale, &mut out.rows[head * count..], lanes);
    }
    if let Some(pairs) = pairs {
        pairs.set_queries(&out.rows, lanes, &mut out.pairs);
    }
}

/// A tile and some keys of a segment.
#[derive(Clone, Copy)]
struct TilePart<'a> {
    options: &'a Settings,
    segment: &'a Segment<'a>,
    prepared: &'a Prepared<'a>,
    tile: &'a Tile,
    /// Those of these keys that each query of the tile sees.
    ranges: &'a [Range<usize>],
}

impl TilePart<'_> {
    /// `begins` if these are the first keys of the segment.
    fn attend(self, begins: bool, state: &mut State, scratch: &mut Scratch) {
        let Self { segment, prepared, tile, ranges, .. } = self;
        let heads = tile.heads.len();
        let pairs = (ranges.iter().map(ExactSizeIterator::len).sum::<usize>() * heads) as u64;
        state.counts.pairs += pairs;
        if segment.part != Part::Far {
            state.counts.exact_pairs += pairs;
        }
        if let Some(margin) = segment.skip_margin {
            if begins {
                // Lanes that stand for no query must keep nothing alive.
                state.thresholds.reset(state.queries.lanes, 1e30);
                let margins =
                    || tile.positions.clone().map(|position| margin.nats(position + 1, ranges.len()));
                let margins = (0..heads).flat_map(|_| margins());
                for ((threshold, max), margin) in state.thresholds.iter_mut().zip(&*state.max).zip(margins) {
                    *threshold = max - margin * LOG2_E;
                }
            }
            state.counts.skipped_values += pairs;
        }
        let all = union(ranges.iter().cloned());
        match &prepared.first_pass {
            _ if all.is_empty() => {}
            Some(codes) => self.attend_candidates(codes, &all, state, scratch),
            None => self.attend_blocks(&all, state, scratch),
        }
        self.accumulate(state, scratch);
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
        state: &mut State,
        scratch: &mut Scratch,
    ) {
        let Some(first_pass) = FirstPass::of(self.options.isa) else { return };
        let Scratch { codes, candidates, .. } = &mut *scratch;
        first_pass.set_queries(keys, &state.queries.rows, state.queries.lanes, codes);
        candidates.clear();
        first_pass.candidates(keys, tokens.clone(), codes, &state.thresholds, candidates);
        let candidates = std::mem::take(candidates);
        let seen_by_all = self.seen_by_all();
        // Before, inside and behind what every query sees.
        let (before, rest) = candidates.split_at(candidates.partition_point(|t| *t < seen_by_all.start));
        let (inside, behind) = rest.split_at(rest.partition_point(|t| *t < seen_by_all.end));
        for (tokens, unmasked) in [(before, false), (inside, true), (behind, false)] {
            for tokens in tokens.chunks(BLOCK_TOKENS) {
                scratch.tokens.clear();
                scratch.tokens.extend_from_slice(tokens);
                self.attend_tokens(unmasked, state, scratch);
            }
        }
        scratch.candidates = candidates;
    }

    /// Attends the keys `tokens`, block by block.
    fn attend_blocks(self, tokens: &Range<usize>, state: &mut State, scratch: &mut Scratch) {
        let seen_by_all = self.seen_by_all();
        let mut start = tokens.start;
        while start < tokens.end {
            let block = start..tokens.end.min((start / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
            start = block.end;
            let unmasked = seen_by_all.start <= block.start && block.end <= seen_by_all.end;
            scratch.tokens.clear();
            scratch.tokens.extend(block);
            self.attend_tokens(unmasked, state, scratch);
        }
    }

    /// Attends the keys `scratch.tokens`, which ascend; `unmasked` if every query sees them.
    fn attend_tokens(self, unmasked: bool, state: &mut State, scratch: &mut Scratch) {
        let Self { options, segment, prepared, ranges, .. } = self;
        let lanes = state.queries.lanes;
        self.score(unmasked, state, scratch);
        if !unmasked {
            let Scratch { scores, pending, tokens, starts, ends, kept, .. } = &mut *scratch;
            let scores = &mut scores[pending.len() * lanes..][..tokens.len() * lanes];
            let lane_ranges = || (0..self.tile.heads.len()).flat_map(|_| ranges);
            let row = |token: usize| tokens.partition_point(|other| *other < token) as f32;
            starts.reset(lanes, 0.0);
            ends.reset(lanes, 0.0);
            starts.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.start));
            ends.iter_mut().zip(lane_ranges()).for_each(|(x, r)| *x = row(r.end));
            softmax::mask(options.isa, scores, starts, ends);
            if segment.skip_margin.is_some() {
                softmax::keep_above(options.isa, scores, &state.thresholds, kept);
            }
        }
        self.count_kept(unmasked, scratch, &mut state.counts);
        let Scratch { pending, tokens, kept, .. } = &mut *scratch;
        pending.extend(kept.iter().map(|place| tokens[*place]));
        if !prepared.values.spans_blocks() || pending.len() >= ENOUGH_VALUES {
            self.accumulate(state, scratch);
        }
    }

    /// Takes the keys that were kept, `unmasked` ones seen by every query, out of the count of those that are skipped.
    fn count_kept(self, unmasked: bool, scratch: &Scratch, counts: &mut HeadSparsity) {
        if self.segment.skip_margin.is_some() {
            let sees = |token: usize| self.ranges.iter().filter(|range| range.contains(&token)).count();
            let kept: usize = match unmasked {
                true => scratch.kept.len() * self.ranges.len(),
                false => scratch.kept.iter().map(|place| sees(scratch.tokens[*place])).sum(),
            };
            counts.skipped_values -= (kept * self.tile.heads.len()) as u64;
        }
    }

    /// Scores the keys `scratch.tokens`, behind the scores of those that are pending. Where something may be skipped and
    /// the keys are `unmasked`, the scores of those that are above the threshold of any query, packed; otherwise all. `kept` says
    /// which.
    fn score(self, unmasked: bool, state: &State, scratch: &mut Scratch) {
        let Self { options, segment, prepared, .. } = self;
        let State { queries, thresholds, .. } = state;
        let Scratch { scores, pending, tokens, kept, keys, .. } = &mut *scratch;
        let scores = &mut scores[pending.len() * queries.lanes..][..tokens.len() * queries.lanes];
        let limits: Option<&[f32]> = (segment.skip_margin.is_some() && unmasked).then_some(thresholds);
        let Some(cap) = options.softcap else {
            return prepared.keys.score(tokens, queries, limits, scores, kept, keys);
        };
        // A cap changes the scores after the product and before the test.
        prepared.keys.score(tokens, queries, None, scores, kept, keys);
        softcap(options.isa, scores, cap);
        if let Some(limits) = limits {
            softmax::keep_above(options.isa, scores, limits, kept);
        }
    }

    /// Adds the values of the keys that are pending, weighted by their scores.
    fn accumulate(self, state: &mut State, scratch: &mut Scratch) {
        let Self { options, prepared, .. } = self;
        let State { queries, sums, max, total, .. } = state;
        let (isa, lanes) = (options.isa, queries.lanes);
        let Scratch { scores, pending, rescale, values, .. } = scratch;
        if pending.is_empty() {
            return;
        }
        let scores = &mut scores[..pending.len() * lanes];
        if softmax::update(isa, scores, lanes, max, total, rescale) {
            softmax::rescale(isa, sums, rescale);
        }
        // In parts of equal size, each as much as a sum in 16 bits takes.
        let part = pending.len().div_ceil(pending.len().div_ceil(BLOCK_TOKENS));
        for (tokens, weights) in pending.chunks(part).zip(scores.chunks(part * lanes)) {
            prepared.values.add(isa, tokens, weights, lanes, sums, values);
        }
        pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_have_lanes_for_every_group() {
        for group in (1..=128).chain([1 << 20, usize::MAX]) {
            assert_eq!(TileSize::of(QUERY_TILE, group, true), TileSize { queries: QUERY_TILE, heads: 1 });
            for (skips, most) in [(false, 64), (true, QUERY_TILE)] {
                let TileSize { queries, heads } = TileSize::of(QUERY_TILE - 1, group, skips);
                assert!(heads == group && queries.is_power_of_two(), "{group}");
                assert!((4..=most).contains(&queries), "{group}");
            }
        }
        // 32 queries of 3 heads are 96 lanes.
        assert_eq!(TileSize::of(700, 3, false).queries, 32);
    }
}
