//! One call of a kernel: checks, tiles, threads, and the way back into the caller's memory.

use std::ops::Range;

use deltallm_core::HeadSparsity;

use crate::{
    AttentionError, AttentionOptions, HeadsView, HeadsViewMut,
    decode::attend_token,
    prepare::{Prepared, prepare_head},
    query_tile,
    tile::{Phase, Phases, Scratch, Tile, attend_tile, union},
    window::Split,
};

/// Attends `q`, whose first token stands at position `first`, and writes `out`. `phases` knows the phases of each
/// kv head. If all goes well, the pairs of each kv head are added to `counts`.
pub(crate) fn attend<'a>(
    options: &AttentionOptions,
    q: &HeadsView,
    first: usize,
    split: &Split,
    phases: &(dyn Fn(usize) -> Phases<'a> + Sync),
    mut out: HeadsViewMut,
    counts: &mut [HeadSparsity],
) -> Result<(), AttentionError> {
    let shape = options.shape;
    if q.tokens() == 1 {
        return attend_token(options, q, first, split, phases, out, counts);
    }
    let phases: Vec<Phases> = (0..shape.kv_heads()).map(phases).collect();
    let tiles = tiles(first..first + q.tokens(), query_tile(shape.group()), shape.kv_heads());
    // Preparing a block costs about as much as a tile spends on it: do it once if several tiles follow.
    let prepared = match q.tokens() > query_tile(shape.group()) {
        true => prepare(options, first..first + q.tokens(), split, &phases)?,
        false => Vec::new(),
    };
    let work = |scratch: &mut Scratch, tile: &Tile| {
        let prepared = prepared.get(tile.kv_head).map_or(&[][..], |phases| phases);
        attend_tile(options, q, first, tile, split, &phases[tile.kv_head], prepared, scratch)
    };
    let mut counted = vec![HeadSparsity::default(); shape.kv_heads()];
    for_each(options.parallel, &tiles, work, |tile, output| {
        counted[tile.kv_head] += output.counts;
        let rows = output.rows.chunks_exact(shape.head_dim());
        let places = tile.positions.clone().flat_map(|p| (0..shape.group()).map(move |h| (p, h)));
        for ((position, head), row) in places.zip(rows) {
            out.row_mut(position - first, tile.kv_head * shape.group() + head).copy_from_slice(row);
        }
    })?;
    counts.iter_mut().zip(&counted).for_each(|(sum, more)| *sum += *more);
    Ok(())
}

/// Every phase of every kv head, prepared for the queries at `positions`.
fn prepare(
    options: &AttentionOptions,
    positions: Range<usize>,
    split: &Split,
    phases: &[Phases],
) -> Result<Vec<Vec<Prepared>>, AttentionError> {
    let mut prepared = Vec::with_capacity(phases.len());
    let work = |scratch: &mut Vec<f32>, phases: &Phases| {
        let tokens =
            |phase: &Phase| union(positions.clone().map(|position| split.range(phase.part, position)));
        let phases: Vec<_> = phases.iter().map(|phase| (phase, tokens(phase))).collect();
        Ok(prepare_head(options, &phases, scratch))
    };
    for_each(options.parallel, phases, work, |_, head| prepared.push(head))?;
    Ok(prepared)
}

/// Cuts `positions` at multiples of `size`, for every kv head.
fn tiles(positions: Range<usize>, size: usize, kv_heads: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut start = positions.start;
    while start < positions.end {
        let end = positions.end.min((start / size + 1) * size);
        tiles.extend((0..kv_heads).map(|kv_head| Tile { kv_head, positions: start..end }));
        start = end;
    }
    tiles
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
    if parallel && items.len() > 1 && rayon::current_num_threads() > 1 {
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
        for items in items.chunks(32 * rayon::current_num_threads()) {
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
