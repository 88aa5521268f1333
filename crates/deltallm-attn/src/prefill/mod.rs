//! Prompts: many queries at a time, in tiles. In reading order:
//!
//! - here: a call's tiles, shared among threads;
//! - [`prepare`]: keys and values in the form in which tiles read them, some thousand at a time, once for many tiles;
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

use deltallm_core::{BLOCK_TOKENS, HeadSparsity};
use deltallm_simd::tuning::PREPARED_KEYS;

use crate::{
    AttentionError, HeadsView,
    options::Settings,
    output::Output,
    ranges::{multiples, union},
    segment::{Segment, Segments},
    window::Split,
};

use pairs::Pairs;
use prepare::{Prepared, prepare};
pub use tile::QUERY_TILE;
use tile::{Call, PreparedPart, Scratch, Tile, TileOutput, TileSize};

/// Queries of a kv head, of all its heads, that are attended together: keys are prepared for all of them, and each has its sums meanwhile.
const QUERIES: usize = 12288;

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
    let positions = first..first + q.tokens();
    // Not in a prompt that is attended exactly: it has no keys to choose from.
    let skips = segments(0).iter().any(|segment| {
        let any = |position| !split.range(segment.part, position).is_empty();
        segment.skip_margin.is_some() && positions.clone().any(any)
    });
    let size = TileSize::of(q.tokens(), shape.group(), skips);
    // Converting a block costs about as much as a tile spends on it: do it once if several tiles follow. What is prepared takes
    // more than its cache, so it is done for one head per thread at a time.
    let prepares = q.tokens() > size.queries || shape.group() > size.heads;
    let pairs = Pairs::of(options.isa, options.precision).filter(|_| prepares);
    let call = Call { options, q, first, split, pairs };
    let mut counted = vec![HeadSparsity::default(); shape.kv_heads()];
    let mut take = |tile: &Tile, output: TileOutput| {
        counted[tile.kv_head] += output.counts;
        let places = tile.positions.clone().flat_map(|p| tile.heads.clone().map(move |h| (p, h)));
        let places = places.map(|(position, head)| (position - first, tile.kv_head * shape.group() + head));
        for ((token, head), row) in places.clone().zip(output.rows.chunks_exact(shape.value_dim())) {
            rows.row_mut(token, head).copy_from_slice(row);
        }
        if !log_sums.is_empty() {
            for ((token, head), sum) in places.zip(output.log_sums) {
                log_sums[token * shape.heads() + head] = sum;
            }
        }
    };
    let at_once = if prepares { threads(options.parallel) } else { shape.kv_heads() };
    for heads in chunks(0..shape.kv_heads(), at_once) {
        let segments: Vec<Segments> = heads.clone().map(segments).collect();
        let at_a_time = (QUERIES / shape.group() / size.queries).max(1) * size.queries;
        for positions in multiples(positions.clone(), at_a_time) {
            let mut tiles = Vec::new();
            for positions in multiples(positions.clone(), size.queries) {
                for kv_head in heads.clone() {
                    let of_group = chunks(0..shape.group(), size.heads);
                    tiles.extend(of_group.map(|of_group| Tile::new(kv_head, of_group, positions.clone())));
                }
            }
            let most = if prepares { PREPARED_KEYS } else { usize::MAX };
            let rounds = rounds(split, &segments[0], &positions, most);
            for (round, parts) in rounds.iter().enumerate() {
                let prepared = prepare_all(call, prepares, &segments, parts)?;
                let work = |scratch: &mut Scratch, tile: &mut Tile| {
                    let head = tile.kv_head - heads.start;
                    let parts = parts.iter().zip(&prepared[head]).map(|((segment, tokens), prepared)| {
                        PreparedPart { segment: &segments[head][*segment], tokens, prepared }
                    });
                    tile.attend(call, parts, round + 1 == rounds.len(), scratch)
                };
                for_each(options.parallel, &mut tiles, work, |tile, output| {
                    output.into_iter().for_each(|output| take(tile, output));
                })?;
            }
        }
    }
    counts.iter_mut().zip(&counted).for_each(|(sum, more)| *sum += *more);
    Ok(())
}

/// Tokens of a segment, which is given by its number.
type Tokens = (usize, Range<usize>);

/// The keys of all segments for the queries at `positions`, in order, and in rounds of about `most` keys. There is at least one round.
fn rounds(split: &Split, segments: &[Segment], positions: &Range<usize>, most: usize) -> Vec<Vec<Tokens>> {
    let (mut rounds, mut room) = (vec![Vec::new()], most);
    for (number, segment) in segments.iter().enumerate() {
        let mut tokens = union(positions.clone().map(|position| split.range(segment.part, position)));
        while !tokens.is_empty() {
            if room == 0 {
                rounds.push(Vec::new());
                room = most;
            }
            let mut end = tokens.end.min(tokens.start.saturating_add(room));
            if end < tokens.end {
                // Blocks are read from their beginning.
                end = tokens.end.min(end.next_multiple_of(BLOCK_TOKENS));
            }
            rounds.last_mut().into_iter().for_each(|round| round.push((number, tokens.start..end)));
            room = room.saturating_sub(end - tokens.start);
            tokens.start = end;
        }
    }
    rounds
}

/// The `parts` of each kv head: prepared, or as they are held.
fn prepare_all<'a>(
    Call { options, pairs, .. }: Call,
    prepares: bool,
    segments: &[Segments<'a>],
    parts: &[Tokens],
) -> Result<Vec<Vec<Prepared<'a>>>, AttentionError> {
    let mut heads: Vec<&Segments> = segments.iter().collect();
    let work = |rows: &mut Vec<f32>, segments: &mut &Segments<'a>| {
        let parts = parts.iter().map(|(segment, tokens)| (&segments[*segment], tokens.clone()));
        Ok(match prepares {
            true => parts.map(|(segment, tokens)| prepare(options, pairs, segment, tokens, rows)).collect(),
            false => parts.map(|(segment, _)| Prepared::as_held(segment)).collect(),
        })
    };
    let mut prepared = Vec::with_capacity(segments.len());
    for_each(options.parallel && prepares, &mut heads, work, |_, head| prepared.push(head))?;
    Ok(prepared)
}

/// Cuts `range` into parts of `size`.
fn chunks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(size).map(move |start| start..end.min(start + size))
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
fn for_each<T: Send, S: Default + Send, O: Send>(
    parallel: bool,
    items: &mut [T],
    work: impl Fn(&mut S, &mut T) -> Result<O, AttentionError> + Sync,
    mut take: impl FnMut(&T, O),
) -> Result<(), AttentionError> {
    #[cfg(feature = "rayon")]
    if items.len() > 1 && threads(parallel) > 1 {
        use std::sync::{Mutex, PoisonError};

        use rayon::prelude::*;
        // Working memory goes from item to item as with one thread: fresh memory for each costs page faults.
        let idle = Mutex::new(Vec::new());
        let work = |item: &mut T| {
            let idle = || idle.lock().unwrap_or_else(PoisonError::into_inner);
            let mut scratch: S = idle().pop().unwrap_or_default();
            let output = work(&mut scratch, item);
            idle().push(scratch);
            output
        };
        // As many at a time as keep all threads busy; more results would have to wait in memory.
        for items in items.chunks_mut(32 * threads(parallel)) {
            let outputs: Vec<O> =
                items.par_iter_mut().with_max_len(1).map(&work).collect::<Result<_, _>>()?;
            items.iter().zip(outputs).for_each(|(item, output)| take(item, output));
        }
        return Ok(());
    }
    let _ = parallel;
    let mut scratch = S::default();
    items.iter_mut().try_for_each(|item| {
        let output = work(&mut scratch, item)?;
        take(item, output);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ExactWindow, HeadsView, Mask,
        segment::{HeadRows, SegmentKeys},
        window::{Part, WindowState},
    };

    #[test]
    fn rounds_have_every_key_once_and_end_with_blocks() {
        let numbers = [0.0];
        let rows = HeadRows { view: HeadsView::new(&numbers, [1, 1, 1]).unwrap(), head: 0 };
        let segment =
            |part| Segment { keys: SegmentKeys::Rows(&rows), values: &rows, part, skip_margin: None };
        let segments = [Part::Sinks, Part::Window, Part::Far].map(segment);
        let window = WindowState::new(ExactWindow::Sliding(100), 0);
        for (first, tokens, most) in [(0, 1, 64), (0, 5000, 1000), (4000, 4100, 640), (70, 5000, usize::MAX)]
        {
            let split = Split { mask: Mask::Causal, tokens, window, exact_from: 0, sinks: 4 };
            let rounds = rounds(&split, &segments, &(first..tokens), most);
            let parts: Vec<&Tokens> = rounds.iter().flatten().collect();
            for (number, segment) in segments.iter().enumerate() {
                let all = union((first..tokens).map(|position| split.range(segment.part, position)));
                let own = parts.iter().filter(|part| part.0 == number);
                let end = own.fold(all.start, |end, (_, part)| {
                    assert!(
                        part.start == end && (part.end == all.end || part.end.is_multiple_of(BLOCK_TOKENS))
                    );
                    part.end
                });
                assert_eq!(end, all.end, "{number} of {first}..{tokens}");
            }
            assert!(parts.is_sorted_by_key(|part| part.0) && rounds.iter().all(|round| !round.is_empty()));
            let long = |round: &Vec<Tokens>| round.iter().map(|part| part.1.len()).sum::<usize>();
            assert!(rounds.iter().all(|round| long(round) < most.saturating_add(BLOCK_TOKENS)), "{most}");
        }
    }
}
