//! One call of a kernel: checks, tiles, threads, and the way back into the caller's memory.

use std::ops::Range;

use deltallm_core::HeadSparsity;

use crate::{
    AttentionError, AttentionOptions, HeadsView, HeadsViewMut,
    decode::attend_token,
    prepare::Prepared,
    query_tile,
    tile::{Phase, Scratch, Tile, attend_tile, union},
    window::Split,
};

/// Checks the arguments of a forward call.
pub(crate) fn check_inputs(
    options: &AttentionOptions,
    q: &HeadsView,
    k: &HeadsView,
    v: &HeadsView,
    out: &HeadsViewMut,
) -> Result<(), AttentionError> {
    let shape = options.shape;
    if q.tokens() == 0 {
        return Err(AttentionError::Shape { input: "q", dimension: "tokens", expected: 1, got: 0 });
    }
    q.check("q", q.tokens(), shape.heads(), shape.head_dim())?;
    k.check("k", k.tokens(), shape.kv_heads(), shape.head_dim())?;
    v.check("v", k.tokens(), shape.kv_heads(), shape.head_dim())?;
    out.check(q.tokens(), shape.heads(), shape.head_dim())
}

/// Attends `q`, whose first token stands at position `first`, and writes `out`. `phases` is the list of phases of each
/// kv head. Returns the pairs counted per kv head.
pub(crate) fn attend(
    options: &AttentionOptions,
    q: &HeadsView,
    first: usize,
    split: &Split,
    phases: &[Vec<Phase>],
    mut out: HeadsViewMut,
) -> Result<Vec<HeadSparsity>, AttentionError> {
    let shape = options.shape;
    if q.tokens() == 1 {
        return attend_token(options, q, first, split, phases, out);
    }
    let tiles = tiles(first..first + q.tokens(), query_tile(shape.group()), shape.kv_heads());
    // Preparing a block costs about as much as a tile spends on it: do it once if several tiles follow.
    let prepared = match q.tokens() > query_tile(shape.group()) {
        true => prepare(options, first..first + q.tokens(), split, phases)?,
        false => Vec::new(),
    };
    let outputs = map(options.parallel, &tiles, |scratch: &mut Scratch, tile| {
        let prepared = prepared.get(tile.kv_head).map_or(&[][..], |phases| phases);
        attend_tile(options, q, first, tile, split, &phases[tile.kv_head], prepared, scratch)
    })?;
    let mut counts = vec![HeadSparsity::default(); shape.kv_heads()];
    for (tile, output) in tiles.iter().zip(&outputs) {
        counts[tile.kv_head].add(&output.counts);
        let rows = output.rows.chunks_exact(shape.head_dim());
        let places = tile.positions.clone().flat_map(|p| (0..shape.group()).map(move |h| (p, h)));
        for ((position, head), row) in places.zip(rows) {
            out.row_mut(position - first, tile.kv_head * shape.group() + head).copy_from_slice(row);
        }
    }
    Ok(counts)
}

/// Every phase of every kv head, prepared for the queries at `positions`.
fn prepare(
    options: &AttentionOptions,
    positions: Range<usize>,
    split: &Split,
    phases: &[Vec<Phase>],
) -> Result<Vec<Vec<Prepared>>, AttentionError> {
    let (head_dim, pairs) = (options.shape.head_dim(), options.simd.pairs(options.precision));
    map(options.parallel, phases, |_: &mut (), phases| {
        let prepare = |phase: &Phase| {
            let ranges = positions.clone().map(|position| split.range(phase.part, position));
            Prepared::new(phase, union(ranges), head_dim, pairs)
        };
        Ok(phases.iter().map(prepare).collect())
    })
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

/// The results of `work` for all items, in order. Items do not depend on each other, so neither does the result on the
/// number of threads.
fn map<T: Sync, S: Default, O: Send>(
    parallel: bool,
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<O, AttentionError> + Sync,
) -> Result<Vec<O>, AttentionError> {
    #[cfg(feature = "rayon")]
    if parallel && items.len() > 1 {
        use rayon::prelude::*;
        // The last tiles see the most keys: starting with them leaves no long one for the end.
        let mut outputs: Vec<O> = items
            .par_iter()
            .rev()
            .with_max_len(1)
            .map_init(S::default, |scratch, item| work(scratch, item))
            .collect::<Result<_, _>>()?;
        outputs.reverse();
        return Ok(outputs);
    }
    let _ = parallel;
    let mut scratch = S::default();
    items.iter().map(|item| work(&mut scratch, item)).collect()
}
