//! Attention of one token: what generation spends its time on.
//!
//! A tile of queries makes vectors of queries; here there is one query per head, so the vectors run along the channels,
//! and the heads of a group share every row of the cache. The keys of a kv head are taken in blocks of [`BLOCK_TOKENS`](deltallm_core::BLOCK_TOKENS):
//! scores, the skip test, softmax, and the values of the keys that are left.
//!
//! Long caches are cut into [`chunks`] that are attended separately and merged in order, on whichever
//! thread each ran: the result does not depend on the number of threads. Value skipping needs the best exact score
//! first, so there are two rounds: the segments before the first one that skips, then the rest.
//!
//! In reading order: here, the call; [`chunks`], and the [`partial`] result of each; [`token`] (one chunk, block by block); [`scores`]
//! ([`rows`] and [`row_scores`]; [`expand`] and [`differences`] of delta-coded keys; [`queries`] for integer products of keys in 8 bits),
//! [`select`] (skip test and softmax), [`values`], [`passes`] (which heads go together), [`ahead`] (memory that is asked for),
//! [`scratch`] (memory that is kept), [`decode_simd`] (what differs between instruction sets), `arch` (kernels of single ones).

mod ahead;
mod arch;
mod chunks;
mod decode_simd;
mod differences;
mod expand;
mod partial;
mod passes;
mod queries;
mod row_scores;
mod rows;
mod scores;
mod scratch;
mod select;
mod token;
mod values;

use std::f32::consts::LOG2_E;

use deltallm_core::HeadSparsity;
#[cfg(feature = "rayon")]
use deltallm_simd::tuning::LEAST_DECODED;

use crate::{
    AttentionError, AttentionShape, HeadsView, HeadsViewMut,
    options::Settings,
    output::{Output, log_sum},
    segment::{CHANNELS, Segments},
    window::Split,
};
#[cfg(feature = "rayon")]
use chunks::work;
use chunks::{Chunk, plan};
use partial::{Partial, partial_size};
use scratch::{MEMORY, Memory, refill, with_kept, with_scratch};
use token::Token;

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
    scale_queries(options, q, channels, queries);
    let token = Token { options, position, channels, value_channels, queries, segments };
    refill(counts, shape.kv_heads(), HeadSparsity::default());
    plan(rounds, counts, shape, position, split, segments);

    let size = partial_size(group, value_channels);
    refill(merged, shape.kv_heads() * size, 0.0);
    begin(merged, size, options);
    for chunks in &*rounds {
        refill(partials, chunks.len() * size, 0.0);
        refill(skipped, chunks.len(), 0);
        attend_all(&token, chunks, merged, partials, skipped);
        for ((chunk, partial), skipped) in chunks.iter().zip(partials.chunks_exact_mut(size)).zip(&*skipped) {
            counts[chunk.kv_head].skipped_values += skipped;
            let all = &mut merged[chunk.kv_head * size..][..size];
            Partial::new(all, group).merge(&Partial::new(partial, group));
        }
    }
    finish(merged, size, group, log_sums)?;
    write(merged, size, shape, rows);
    Ok(())
}

/// The queries of all heads, scaled, and padded to `channels`.
fn scale_queries(options: &Settings, q: &HeadsView, channels: usize, queries: &mut Vec<f32>) {
    refill(queries, options.shape.heads() * channels, 0.0);
    // Scores come out in units of ln 2, but a cap is a function of nats; its result changes the unit.
    let scale = options.scale * if options.softcap.is_none() { LOG2_E } else { 1.0 };
    for (head, query) in queries.chunks_exact_mut(channels).enumerate() {
        query.iter_mut().zip(q.row(0, head)).for_each(|(x, q)| *x = q * scale);
    }
}

/// What each kv head begins with: nothing seen, or the sink logits alone.
fn begin(merged: &mut [f32], size: usize, options: &Settings) {
    let group = options.shape.group();
    merged.chunks_exact_mut(size).for_each(|memory| Partial::new(memory, group).clear());
    if let Some(logits) = &options.sink_logits {
        for (memory, logits) in merged.chunks_exact_mut(size).zip(logits.chunks_exact(group)) {
            let Partial { max, total, .. } = Partial::new(memory, group);
            max.iter_mut().zip(logits).for_each(|(max, logit)| *max = logit * LOG2_E);
            total.fill(1.0);
        }
    }
}

/// Attends all chunks, each into its part of `partials`, and says how many values each skipped; `merged` is the result of
/// earlier rounds.
fn attend_all(token: &Token, chunks: &[Chunk], merged: &[f32], partials: &mut [f32], skipped: &mut [u64]) {
    let size = merged.len() / token.options.shape.kv_heads();
    #[cfg(feature = "rayon")]
    if token.options.parallel
        && chunks.len() > 1
        && chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>()
            >= LEAST_DECODED / work(token.options.shape)
        && rayon::current_num_threads() > 1
    {
        use rayon::prelude::*;
        let work = chunks.par_iter().zip(partials.par_chunks_exact_mut(size)).zip(skipped);
        return work.for_each(|((chunk, partial), skipped)| {
            *skipped = with_scratch(|scratch| token.attend(chunk, merged, partial, scratch));
        });
    }
    with_scratch(|scratch| {
        for ((chunk, partial), skipped) in chunks.iter().zip(partials.chunks_exact_mut(size)).zip(skipped) {
            *skipped = token.attend(chunk, merged, partial, scratch);
        }
    });
}

/// Divides the sums by their weights, and takes the logarithms of these where they are asked for.
fn finish(merged: &mut [f32], size: usize, group: usize, log_sums: &mut [f32]) -> Result<(), AttentionError> {
    for memory in merged.chunks_exact_mut(size) {
        let Partial { max, total, sums } = Partial::new(memory, group);
        let channels = sums.len() / group;
        for (head, sums) in sums.chunks_exact_mut(channels).enumerate() {
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
    Ok(())
}

/// Writes the results, without their padding.
fn write(merged: &mut [f32], size: usize, shape: AttentionShape, rows: &mut HeadsViewMut) {
    let group = shape.group();
    for (kv_head, memory) in merged.chunks_exact_mut(size).enumerate() {
        let sums = Partial::new(memory, group).sums;
        for (head, sums) in sums.chunks_exact(sums.len() / group).enumerate() {
            rows.row_mut(0, kv_head * group + head).copy_from_slice(&sums[..shape.value_dim()]);
        }
    }
}
