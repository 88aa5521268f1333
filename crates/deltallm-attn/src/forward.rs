//! One call of a kernel: checks, tiles, threads, and the way back into the caller's memory.

use std::ops::Range;

use deltallm_core::HeadSparsity;

use crate::{
    AttentionError, AttentionOptions, HeadsView, HeadsViewMut,
    decode::attend_token,
    query_tile,
    tile::{Phase, Scratch, Tile, TileOutput, attend_tile},
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
    let outputs = map(options.parallel, &tiles, |scratch, tile| {
        attend_tile(options, q, first, tile, split, &phases[tile.kv_head], scratch)
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

/// The results of `attend` for all tiles, in order. Tiles do not depend on each other, so neither does the result on
/// the number of threads.
fn map(
    parallel: bool,
    tiles: &[Tile],
    attend: impl Fn(&mut Scratch, &Tile) -> Result<TileOutput, AttentionError> + Sync,
) -> Result<Vec<TileOutput>, AttentionError> {
    #[cfg(feature = "rayon")]
    if parallel && tiles.len() > 1 {
        use rayon::prelude::*;
        // The last tiles see the most keys: starting with them leaves no long one for the end.
        let mut outputs: Vec<TileOutput> = tiles
            .par_iter()
            .rev()
            .map_init(Scratch::default, |scratch, tile| attend(scratch, tile))
            .collect::<Result<_, _>>()?;
        outputs.reverse();
        return Ok(outputs);
    }
    let _ = parallel;
    let mut scratch = Scratch::default();
    tiles.iter().map(|tile| attend(&mut scratch, tile)).collect()
}
