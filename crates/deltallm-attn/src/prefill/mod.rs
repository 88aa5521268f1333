//! Prompts: many queries at a time, in tiles. In reading order:
//!
//! - here: a call's tiles, shared among threads;
//! - [`prepare`]: keys and values in the form in which tiles read them, once for all tiles;
//! - [`tile`]: one tile from its queries to its outputs;
//! - [`keys`], [`values`]: what a tile needs of them, a trait each; [`rows`] (f32), [`deltas`], [`pairs`] (16 bits): the forms
//!   there are, each with its arithmetic;
//! - [`first_pass`]: in 8 bits, which keys can matter at all;
//! - [`matmul`], [`softmax`], [`transpose`], [`stream`]: micro-kernels, written once over `fearless_simd`'s vectors. A matrix with a row
//!   for each channel or key and a column for each query lane is *lane-contiguous*, `[rows, lanes]`. Functions take the `Isa` first;
//! - `arch`: faster kernels of single instruction sets.

mod aligned;
mod arch;
mod deltas;
mod first_pass;
mod keys;
mod lanes;
mod matmul;
mod pairs;
mod prepare;
mod rows;
mod softmax;
mod stream;
mod tile;
mod transpose;
mod values;

use std::ops::Range;

use deltallm_core::HeadSparsity;

use crate::{
    AttentionError, HeadsView,
    options::Settings,
    output::Output,
    segment::{Segment, Segments},
    window::Split,
};

use prepare::{Prepared, prepare_head};
pub use tile::query_tile;
use tile::{Scratch, Tile, attend_tile, union};

/// Attends `q`, whose first token stands at position `first`. `segments` knows the segments of each kv head.
pub(crate) fn attend<'a>(
    options: &Settings,
    q: &HeadsView,
    first: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
    Output { mut rows, counts, log_sums }: Output,
) -> Result<(), AttentionError> {
    let shape = options.shape;
    let query_tile = query_tile(shape.group());
    let mut counted = vec![HeadSparsity::default(); shape.kv_heads()];
    // Converting a block costs about as much as a tile spends on it: do it once if several tiles follow. What is prepared of a long
    // history takes more than its cache, so it is done for one head per thread at a time.
    let prepares = q.tokens() > query_tile;
    let at_once = if prepares { threads(options.parallel) } else { shape.kv_heads() };
    for heads in chunks(0..shape.kv_heads(), at_once) {
        let segments: Vec<Segments> = heads.clone().map(segments).collect();
        let tiles = tiles(first..first + q.tokens(), query_tile, heads.clone());
        let prepared = match prepares {
            true => prepare(options, first..first + q.tokens(), split, &segments)?,
            false => {
                segments.iter().map(|segments| segments.iter().map(Prepared::as_held).collect()).collect()
            }
        };
        let work = |scratch: &mut Scratch, tile: &Tile| {
            let head = tile.kv_head - heads.start;
            attend_tile(options, q, first, tile, split, &segments[head], &prepared[head], scratch)
        };
        for_each(options.parallel, &tiles, work, |tile, output| {
            counted[tile.kv_head] += output.counts;
            let places = tile.positions.clone().flat_map(|p| (0..shape.group()).map(move |h| (p, h)));
            let places =
                places.map(|(position, head)| (position - first, tile.kv_head * shape.group() + head));
            for ((token, head), row) in places.clone().zip(output.rows.chunks_exact(shape.value_dim())) {
                rows.row_mut(token, head).copy_from_slice(row);
            }
            if !log_sums.is_empty() {
                for ((token, head), sum) in places.zip(output.log_sums) {
                    log_sums[token * shape.heads() + head] = sum;
                }
            }
        })?;
    }
    counts.iter_mut().zip(&counted).for_each(|(sum, more)| *sum += *more);
    Ok(())
}

/// Every segment of every kv head, prepared for the queries at `positions`.
fn prepare<'a>(
    options: &Settings,
    positions: Range<usize>,
    split: &Split,
    segments: &[Segments<'a>],
) -> Result<Vec<Vec<Prepared<'a>>>, AttentionError> {
    let mut prepared = Vec::with_capacity(segments.len());
    let work = |scratch: &mut Vec<f32>, segments: &Segments<'a>| {
        let tokens =
            |segment: &Segment| union(positions.clone().map(|position| split.range(segment.part, position)));
        let segments: Vec<_> = segments.iter().map(|segment| (segment, tokens(segment))).collect();
        Ok(prepare_head(options, &segments, scratch))
    };
    for_each(options.parallel, segments, work, |_, head| prepared.push(head))?;
    Ok(prepared)
}

/// Cuts `range` into parts of `size`.
fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
}

/// Cuts `positions` at multiples of `size`, for each of these kv heads.
fn tiles(positions: Range<usize>, size: usize, kv_heads: Range<usize>) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut start = positions.start;
    while start < positions.end {
        let end = positions.end.min((start / size + 1) * size);
        tiles.extend(kv_heads.clone().map(|kv_head| Tile { kv_head, positions: start..end }));
        start = end;
    }
    tiles
}

/// How many threads share the work.
fn threads(parallel: bool) -> usize {
    #[cfg(feature = "rayon")]
    if parallel {
        return rayon::current_num_threads();
    }
    let _ = parallel;
    1
}

/// Does `work` for all items and hands the results to `take`, in order. Items do not depend on each other, so neither
/// does the result on the number of threads.
fn for_each<T: Sync, S: Default + Send, O: Send>(
    parallel: bool,
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<O, AttentionError> + Sync,
    mut take: impl FnMut(&T, O),
) -> Result<(), AttentionError> {
    #[cfg(feature = "rayon")]
    if items.len() > 1 && threads(parallel) > 1 {
        use std::sync::{Mutex, PoisonError};

        use rayon::prelude::*;
        // Working memory goes from item to item as with one thread: fresh memory for each costs page faults.
        let idle = Mutex::new(Vec::new());
        let work = |item: &T| {
            let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let mut scratch: S = idle().pop().unwrap_or_default();
            let output = work(&mut scratch, item);
            idle().push(scratch);
            output
        };
        // As many at a time as keep all threads busy; more results would have to wait in memory.
        for items in items.chunks(32 * threads(parallel)) {
            let outputs: Vec<O> = items.par_iter().with_max_len(1).map(&work).collect::<Result<_, _>>()?;
            items.iter().zip(outputs).for_each(|(item, output)| take(item, output));
        }
        return Ok(());
    }
    let _ = parallel;
    let mut scratch = S::default();
    items.iter().try_for_each(|item| {
        take(item, work(&mut scratch, item)?);
        Ok(())
    })
}
