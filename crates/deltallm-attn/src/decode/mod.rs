//! Attention of one token: what generation spends its time on.
//!
//! A tile of queries makes vectors of queries; here there is one query per head, so the vectors run along the channels,
//! and the heads of a group share every row of the cache. The keys of a kv head are taken in blocks of [`BLOCK_TOKENS`]:
//! scores, the skip test, softmax, and the values of the keys that are left.
//!
//! Long caches are cut into chunks ([`chunk_tokens`]) that are attended separately and merged in order, on whichever
//! thread each ran: the result does not depend on the number of threads. Value skipping needs the best exact score
//! first, so there are two rounds: the segments before the first one that skips, then the rest.
//!
//! In reading order: here, the call; [`scores`] ([`rows`] and [`dots`]; [`expand`] and [`differences`] of delta-coded keys; [`queries`] for
//! integer products of keys in 8 bits), [`select`] (skip test and softmax), [`values`], [`passes`] (which heads go together),
//! [`ahead`] (memory that is asked for), [`lanes`] (what differs between instruction sets), `arch` (kernels of single ones).

mod ahead;
mod arch;
mod differences;
mod dots;
mod expand;
mod lanes;
mod passes;
mod queries;
mod rows;
mod scores;
mod scratch;
mod select;
mod values;

use std::{cell::Cell, f32::consts::LOG2_E, ops::Range, thread::LocalKey};

use deltallm_core::{
    BLOCK_TOKENS, HeadSparsity,
    internal::{DeltaBlock, FloatRows, StoredRows},
};
use deltallm_simd::tuning::DECODE_CHUNK;
#[cfg(feature = "rayon")]
use deltallm_simd::tuning::LEAST_DECODED;

use crate::{
    AttentionError, AttentionShape, HeadsView,
    options::Settings,
    output::{Output, log_sum},
    ranges::multiples,
    segment::{CHANNELS, Keys, Rows, Segment, Segments},
    softcap::softcap,
    window::{Part, Split},
};
use ahead::prefetch_values;
use scores::Scoring;
use scratch::KernelScratch;
use select::{Kept, Softmax, select};

/// Blocks of a chunk: few enough to share the work of small heads too, and enough for what merging reads and writes to be little beside
/// their rows.
const BLOCKS: [usize; 2] = [4, 16];

/// A stretch of keys of one segment of one kv head.
#[derive(Debug)]
struct Chunk {
    kv_head: usize,
    segment: usize,
    tokens: Range<usize>,
}

thread_local! {
    /// Working memory of a call, kept for the thread's next one, so that a step of decoding allocates nothing but cache.
    static MEMORY: Cell<Memory> = Cell::default();
    /// The same for each thread that shares the work of a call.
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Calls `work` with what the thread has kept, or with something new within such a call.
fn with_kept<T: Default, R>(kept: &'static LocalKey<Cell<T>>, work: impl FnOnce(&mut T) -> R) -> R {
    // A thread that is ending has nothing any more.
    let mut memory = kept.try_with(Cell::take).unwrap_or_default();
    let result = work(&mut memory);
    let _ = kept.try_with(|kept| kept.set(memory));
    result
}

/// Calls `work` with the thread's working memory, from which nothing of earlier calls is used.
fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    with_kept(&SCRATCH, |scratch| {
        scratch.kernels.forget();
        work(scratch)
    })
}

/// Working memory of a call.
#[derive(Debug, Default)]
struct Memory {
    /// Scaled queries, `[heads, channels]`.
    queries: Vec<f32>,
    /// Per kv head.
    counts: Vec<HeadSparsity>,
    /// The chunks of the segments before the first one that skips, and of the rest.
    rounds: [Vec<Chunk>; 2],
    /// A [`Partial`] for each kv head.
    merged: Vec<f32>,
    /// A [`Partial`] for each chunk of a round, and the values that it skipped.
    partials: Vec<f32>,
    skipped: Vec<u64>,
}

/// Working memory of a thread.
#[derive(Debug, Default)]
struct Scratch {
    /// `[group]`: scores above these make a value count.
    thresholds: Vec<f32>,
    /// `[group, BLOCK_TOKENS]`.
    scores: Vec<f32>,
    /// The same: of the block before, whose values are still to be added.
    weights: Vec<f32>,
    /// Which keys these weights are for.
    kept: Kept,
    kernels: KernelScratch,
    converted: Converted,
}

/// Rows as f32, and the same padded.
#[derive(Debug, Default)]
struct Converted {
    rows: Vec<f32>,
    padded: Vec<f32>,
}

/// Partial result over some keys of one kv head: `[group]` maxima, `[group]` sums of weights, `[group, channels]` weighted
/// sums of values.
struct Partial<'a> {
    max: &'a mut [f32],
    total: &'a mut [f32],
    sums: &'a mut [f32],
}

/// One token's attention.
struct Token<'a, 'p> {
    options: &'a Settings,
    position: usize,
    /// Channels of a key and of a value, padded to whole vectors.
    channels: usize,
    value_channels: usize,
    /// Scaled queries, `[heads, channels]`.
    queries: &'a [f32],
    /// Of each kv head.
    segments: &'a (dyn Fn(usize) -> Segments<'p> + Sync),
}

/// Attends the single token of `q`, which stands at `position`, to the keys of all segments, in order.
pub(crate) fn attend<'a>(
    options: &Settings,
    q: &HeadsView,
    position: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
    mut output: Output,
) -> Result<(), AttentionError> {
    with_kept(&MEMORY, |memory| {
        attend_in(memory, options, q, position, split, segments, &mut output)?;
        output.counts.iter_mut().zip(&memory.counts).for_each(|(sum, more)| *sum += *more);
        Ok(())
    })
}

/// The same; the pairs are left in `memory`.
fn attend_in<'a>(
    memory: &mut Memory,
    options: &Settings,
    q: &HeadsView,
    position: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
    Output { rows, log_sums, .. }: &mut Output,
) -> Result<(), AttentionError> {
    let Memory { queries, counts, rounds, merged, partials, skipped } = memory;
    let shape = options.shape;
    let group = shape.group();
    let [channels, value_channels] =
        [shape.head_dim(), shape.value_dim()].map(|n| n.next_multiple_of(CHANNELS));
    refill(queries, shape.heads() * channels, 0.0);
    // Scores come out in units of ln 2, but a cap is a function of nats; its result changes the unit.
    let scale = options.scale * if options.softcap.is_none() { LOG2_E } else { 1.0 };
    for (head, query) in queries.chunks_exact_mut(channels).enumerate() {
        query.iter_mut().zip(q.row(0, head)).for_each(|(x, q)| *x = q * scale);
    }
    let token = Token { options, position, channels, value_channels, queries, segments };

    refill(counts, shape.kv_heads(), HeadSparsity::default());
    rounds.iter_mut().for_each(Vec::clear);
    for (kv_head, counts) in counts.iter_mut().enumerate() {
        let mut round = 0;
        for (number, segment) in segments(kv_head).iter().enumerate() {
            let tokens = split.range(segment.part, position);
            counts.pairs += (tokens.len() * group) as u64;
            if segment.part != Part::Far {
                counts.exact_pairs += (tokens.len() * group) as u64;
            }
            round |= usize::from(segment.skip_margin.is_some());
            rounds[round].extend(multiples(tokens, chunk_tokens(shape)).map(|tokens| Chunk {
                kv_head,
                segment: number,
                tokens,
            }));
        }
    }

    let size = group * (2 + value_channels);
    refill(merged, shape.kv_heads() * size, 0.0);
    merged.chunks_exact_mut(size).for_each(|memory| Partial::new(memory, group).clear());
    if let Some(logits) = &options.sink_logits {
        for (memory, logits) in merged.chunks_exact_mut(size).zip(logits.chunks_exact(group)) {
            let Partial { max, total, .. } = Partial::new(memory, group);
            max.iter_mut().zip(logits).for_each(|(max, logit)| *max = logit * LOG2_E);
            total.fill(1.0);
        }
    }
    for chunks in &*rounds {
        refill(partials, chunks.len() * size, 0.0);
        refill(skipped, chunks.len(), 0);
        token.attend_all(chunks, merged, partials, skipped);
        for ((chunk, partial), skipped) in chunks.iter().zip(partials.chunks_exact_mut(size)).zip(&*skipped) {
            counts[chunk.kv_head].skipped_values += skipped;
            let all = &mut merged[chunk.kv_head * size..][..size];
            Partial::new(all, group).merge(&Partial::new(partial, group));
        }
    }

    for memory in merged.chunks_exact_mut(size) {
        let Partial { max, total, sums } = Partial::new(memory, group);
        for (head, sums) in sums.chunks_exact_mut(value_channels).enumerate() {
            sums.iter_mut().for_each(|sum| *sum /= total[head]);
            // Inputs are finite, so anything else here is a score that left the range of f32.
            if !max[head].is_finite() || !sums.iter().all(|sum| sum.is_finite()) {
                return Err(AttentionError::Overflow);
            }
        }
    }
    for (memory, log_sums) in merged.chunks_exact_mut(size).zip(log_sums.chunks_exact_mut(group)) {
        let Partial { max, total, .. } = Partial::new(memory, group);
        log_sums
            .iter_mut()
            .zip(max.iter().zip(&*total))
            .for_each(|(sum, (max, total))| *sum = log_sum(*max, *total));
    }
    for (kv_head, memory) in merged.chunks_exact_mut(size).enumerate() {
        for (head, sums) in Partial::new(memory, group).sums.chunks_exact(value_channels).enumerate() {
            rows.row_mut(0, kv_head * group + head).copy_from_slice(&sums[..shape.value_dim()]);
        }
    }
    Ok(())
}

/// Multiplications by the key and the value of one token.
fn work(shape: AttentionShape) -> usize {
    shape.group().saturating_mul(shape.head_dim().saturating_add(shape.value_dim()))
}

/// Tokens that are attended at a stretch: whole blocks.
fn chunk_tokens(shape: AttentionShape) -> usize {
    let blocks = DECODE_CHUNK / work(shape) / BLOCK_TOKENS;
    blocks.clamp(BLOCKS[0], BLOCKS[1]) * BLOCK_TOKENS
}

/// Makes `memory` hold `len` times `value`.
fn refill<T: Clone>(memory: &mut Vec<T>, len: usize, value: T) {
    memory.clear();
    memory.resize(len, value);
}

impl Token<'_, '_> {
    /// Attends all chunks, each into its part of `partials`, and says how many values each skipped; `merged` is the result of
    /// earlier rounds.
    fn attend_all(&self, chunks: &[Chunk], merged: &[f32], partials: &mut [f32], skipped: &mut [u64]) {
        let size = merged.len() / self.options.shape.kv_heads();
        #[cfg(feature = "rayon")]
        if self.options.parallel
            && chunks.len() > 1
            && chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>()
                >= LEAST_DECODED / work(self.options.shape)
            && rayon::current_num_threads() > 1
        {
            use rayon::prelude::*;
            let work = chunks.par_iter().zip(partials.par_chunks_exact_mut(size)).zip(skipped);
            return work.for_each(|((chunk, partial), skipped)| {
                *skipped = with_scratch(|scratch| self.attend(chunk, merged, partial, scratch));
            });
        }
        with_scratch(|scratch| {
            for ((chunk, partial), skipped) in chunks.iter().zip(partials.chunks_exact_mut(size)).zip(skipped)
            {
                *skipped = self.attend(chunk, merged, partial, scratch);
            }
        });
    }

    /// Attends one chunk. Returns the number of (query, key) pairs whose value was skipped.
    fn attend(&self, chunk: &Chunk, merged: &[f32], partial: &mut [f32], scratch: &mut Scratch) -> u64 {
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
        let Scratch { scores, kernels, converted, .. } = scratch;
        let mut scoring = Scoring { queries, channels, scores };
        match segment.keys {
            Keys::Rows(keys) => {
                for_runs(keys, tokens, next, channels, converted, |rows, ahead, count, at| {
                    scores::scores(isa, rows, ahead, count, at, &mut scoring, kernels);
                });
            }
            Keys::Deltas(matrix) => {
                let (block, skip) = (tokens.start / BLOCK_TOKENS, tokens.start % BLOCK_TOKENS);
                let ahead = matrix.coded(block + 1);
                if let Some(coded) = std::mem::replace(coded, ahead).or_else(|| matrix.coded(block)) {
                    scores::delta_scores(isa, coded, ahead, skip, tokens.len(), &mut scoring, kernels);
                }
            }
        }
        if let Some(cap) = self.options.softcap {
            softcap(isa, scores, cap);
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
    rows: &dyn Rows,
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

/// A mask of the lowest `count` bits, 1 to 64 of them.
fn low_bits(count: usize) -> u64 {
    u64::MAX >> (64 - count)
}

impl<'a> Partial<'a> {
    fn new(memory: &'a mut [f32], group: usize) -> Self {
        let (max, rest) = memory.split_at_mut(group);
        let (total, sums) = rest.split_at_mut(group);
        Self { max, total, sums }
    }

    /// Nothing seen yet.
    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.sums.fill(0.0);
    }

    /// Adds the partial result over other keys.
    fn merge(&mut self, other: &Partial) {
        let channels = self.sums.len() / self.max.len();
        for head in 0..self.max.len() {
            let max = self.max[head].max(other.max[head]);
            // A finite reference where nothing has been seen: -inf - (-inf) would be NaN.
            let factor = |x: f32| (x - max.max(f32::MIN)).exp2();
            let (own, others) = (factor(self.max[head]), factor(other.max[head]));
            self.max[head] = max;
            self.total[head] = self.total[head] * own + other.total[head] * others;
            let range = head * channels..(head + 1) * channels;
            for (sum, more) in self.sums[range.clone()].iter_mut().zip(&other.sums[range]) {
                *sum = *sum * own + more * others;
            }
        }
    }
}
