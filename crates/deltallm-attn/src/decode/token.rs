//! One token's attention to one chunk of keys.

use std::{f32::consts::LOG2_E, ops::Range};

use deltallm_core::{
    BLOCK_TOKENS,
    internal::{DeltaBlock, FloatRows, StoredRows},
};

use super::{
    ahead::prefetch_values,
    chunks::Chunk,
    expand::low_bits,
    partial::Partial,
    scores::{Scoring, delta_scores, scores},
    scratch::{Converted, Scratch},
    select::{Softmax, select},
    values,
};
use crate::{
    options::Settings,
    segment::{Segment, SegmentKeys, Segments, TokenRows},
    softcap::softcap,
};

/// A token, and the segments that its queries attend to.
pub(super) struct Token<'a, 'p> {
    pub(super) options: &'a Settings,
    pub(super) position: usize,
    /// Channels of a key and of a value, padded to whole vectors.
    pub(super) channels: usize,
    pub(super) value_channels: usize,
    /// Scaled queries, `[heads, channels]`.
    pub(super) queries: &'a [f32],
    /// Of each kv head.
    pub(super) segments: &'a (dyn Fn(usize) -> Segments<'p> + Sync),
}

impl Token<'_, '_> {
    /// Attends one chunk. Returns the number of (query, key) pairs whose value was skipped.
    pub(super) fn attend(
        &self,
        chunk: &Chunk,
        merged: &[f32],
        partial: &mut [f32],
        scratch: &mut Scratch,
    ) -> u64 {
        let (isa, shape, channels) = (self.options.isa, self.options.shape, self.channels);
        let group = shape.group();
        let segment = &(self.segments)(chunk.kv_head)[chunk.segment];
        let size = partial.len();
        let exact_max = &merged[chunk.kv_head * size..][..group];
        let mut partial = Partial::new(partial, group);
        partial.clear();
        let mut thresholds = std::mem::take(&mut scratch.thresholds);
        thresholds.clear();
        if let Some(margin) = segment.skip_margin {
            partial.max.copy_from_slice(exact_max);
            let margin = margin.nats(self.position + 1, 1) * LOG2_E;
            thresholds.extend(exact_max.iter().map(|max| max - margin));
        }
        let limits = segment.skip_margin.map(|_| &*thresholds);
        scratch.kernels.begin([chunk.kv_head, chunk.segment]);
        let queries = &self.queries[chunk.kv_head * group * channels..][..group * channels];
        scratch.scores.resize(group * BLOCK_TOKENS, 0.0);
        scratch.weights.resize(group * BLOCK_TOKENS, 0.0);
        let (mut skipped, mut waiting, mut coded) = (0, None, None);

        for block in chunk.tokens.start / BLOCK_TOKENS..chunk.tokens.end.div_ceil(BLOCK_TOKENS) {
            let tokens = chunk.tokens.start.max(block * BLOCK_TOKENS)
                ..chunk.tokens.end.min((block + 1) * BLOCK_TOKENS);
            // The keys that follow, in the next block of the chunk.
            let next = chunk.tokens.end.min((block + 2) * BLOCK_TOKENS);
            self.score(segment, queries, &tokens, next, &mut coded, scratch);
            let values = segment.values.stored(tokens.clone()).filter(|(_, count)| *count == tokens.len());
            let values = values.map(|(rows, _)| rows);
            // The values of the block before: their memory has been asked for, and has had time to come. Where all are needed
            // those of this block are next.
            let ahead = if limits.is_none() { values } else { None };
            if let Some((before, rows)) = waiting.take() {
                self.add_values(segment, before, rows, ahead, partial.sums, scratch);
            }
            let all = low_bits(tokens.len());
            let Scratch { scores, weights, kept, .. } = scratch;
            let mut state = Softmax { max: partial.max, total: partial.total, sums: partial.sums };
            select(isa, scores, all, limits, weights, &mut state, kept);
            skipped += ((tokens.len() - kept.numbers().len()) * group) as u64;
            if kept.bits == 0 {
                continue;
            }
            if let (Some(_), Some(rows)) = (limits, values) {
                prefetch_values(rows, kept.numbers(), self.value_channels);
            }
            waiting = Some((tokens, values));
        }
        if let Some((tokens, rows)) = waiting {
            self.add_values(segment, tokens, rows, None, partial.sums, scratch);
        }
        scratch.thresholds = thresholds;
        skipped
    }

    /// Scores the keys `tokens` of one block; keys up to `next` follow. `coded` is the block if it is known already, and then the
    /// one after it.
    fn score<'a>(
        &self,
        segment: &Segment<'a>,
        queries: &[f32],
        tokens: &Range<usize>,
        next: usize,
        coded: &mut Option<DeltaBlock<'a>>,
        scratch: &mut Scratch,
    ) {
        let (isa, channels) = (self.options.isa, self.channels);
        let Scratch { scores: out, kernels, converted, .. } = scratch;
        let mut scoring = Scoring { queries, channels, scores: out };
        match segment.keys {
            SegmentKeys::Rows(keys) => {
                for_runs(keys, tokens, next, channels, converted, |rows, ahead, count, at| {
                    scores(isa, rows, ahead, count, at, &mut scoring, kernels);
                });
            }
            SegmentKeys::Deltas(matrix) => {
                let (block, skip) = (tokens.start / BLOCK_TOKENS, tokens.start % BLOCK_TOKENS);
                let ahead = matrix.coded(block + 1);
                if let Some(coded) = std::mem::replace(coded, ahead).or_else(|| matrix.coded(block)) {
                    delta_scores(isa, coded, ahead, skip..skip + tokens.len(), &mut scoring, kernels);
                }
            }
        }
        if let Some(cap) = self.options.softcap {
            softcap(isa, out, cap);
        }
    }

    /// Adds the values of the keys of `tokens` that were kept, by the weights in `scratch`. `rows` are all of them, where they
    /// lie adjacent; `ahead` are the values of the next keys.
    fn add_values(
        &self,
        segment: &Segment,
        tokens: Range<usize>,
        rows: Option<StoredRows>,
        ahead: Option<StoredRows>,
        sums: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (isa, channels) = (self.options.isa, self.value_channels);
        let Scratch { weights, kept, kernels, converted, .. } = scratch;
        if let Some(rows) = rows {
            return values::add_values(isa, rows, ahead, kept.numbers(), weights, sums, channels, kernels);
        }
        let mut done = 0;
        for_runs(segment.values, &tokens, 0, channels, converted, |rows, ahead, count, at| {
            let here = (kept.bits >> at & low_bits(count)).count_ones() as usize;
            let selected = &mut kept.numbers_mut()[done..done + here];
            selected.iter_mut().for_each(|index| *index -= at as u8);
            values::add_values(isa, rows, ahead, selected, &weights[done..], sums, channels, kernels);
            done += here;
        });
    }
}

/// Calls `work` with the rows of `tokens` (one block's), run by run: rows, their number, and the first one's place in
/// `tokens`; besides the rows that follow it, up to `next_end`. Where there is no kernel for their stored form they come as
/// padded f32.
fn for_runs(
    rows: &dyn TokenRows,
    tokens: &Range<usize>,
    next_end: usize,
    channels: usize,
    scratch: &mut Converted,
    mut work: impl FnMut(StoredRows, Option<StoredRows>, usize, usize),
) {
    let mut next = tokens.start;
    while next < tokens.end {
        if let Some((stored, count)) = rows.stored(next..tokens.end) {
            let follow = next + count;
            let ahead = if follow < next_end { rows.stored(follow..next_end) } else { None };
            work(stored, ahead.map(|(rows, _)| rows), count, next - tokens.start);
            next = follow;
            continue;
        }
        let rest = next..tokens.end;
        let numbers = rows.read(rest.clone(), &mut scratch.rows);
        scratch.padded.clear();
        scratch.padded.resize(rest.len() * channels, 0.0);
        let width = numbers.len() / rest.len();
        for (row, padded) in numbers.chunks_exact(width).zip(scratch.padded.chunks_exact_mut(channels)) {
            padded[..width].copy_from_slice(row);
        }
        let padded = FloatRows { data: &scratch.padded[..], stride: channels };
        work(StoredRows::F32(padded), None, rest.len(), next - tokens.start);
        next = rest.end;
    }
}
