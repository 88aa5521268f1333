//! Attention of one tile of queries: flash-style, key block by key block, with an online softmax.
//!
//! A tile is [`query_tile`] consecutive queries times the heads that share a kv head, side by side in the lanes of the
//! vectors: `lane = head_in_group * queries + query`. Its keys come in *phases*: one for dense attention; sinks, exact
//! window and far history for the hybrid. A phase gives each query a range of keys and says how they are scored.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, DeltaMatrix, DeltaStream, GroupedKeys, HeadSparsity, PagedRows};

use crate::{
    AttentionError, AttentionOptions, HeadsView, SkipMargin,
    decode::DecodeRows,
    window::{Part, Split},
};

/// Queries in a tile, for a group of `group` query heads per kv head: 64 to 128 lanes for groups of up to 32, so
/// that the tile of queries stays in the L1 or L2 cache. Tiles start at multiples of this position. Value skipping decides tile by tile.
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

impl Rows for GroupedKeys {
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
    /// `q . khat` through the deltas; the blocks unpacked beforehand if many tiles need them.
    Delta(&'a DeltaMatrix, &'a [DeltaStream]),
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

/// Working memory that is reused from tile to tile.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Scaled queries, `[head_dim, lanes]`.
    queries: Vec<f32>,
    /// Scores, then weights, of a block: `[BLOCK_TOKENS, lanes]`.
    scores: Vec<f32>,
    /// Weighted sum of values so far, `[head_dim, lanes]`.
    sums: Vec<f32>,
    /// Per lane: largest score, sum of weights, rescale factor, skip threshold, score of the key frame.
    max: Vec<f32>,
    total: Vec<f32>,
    rescale: Vec<f32>,
    thresholds: Vec<f32>,
    frame: Vec<f32>,
    key_rows: Vec<f32>,
    value_rows: Vec<f32>,
    kept_values: Vec<f32>,
    stream: DeltaStream,
}

/// Attends the tile's queries to the keys of all phases, in order. `first` is the position of `q`'s first token.
pub(crate) fn attend_tile(
    options: &AttentionOptions,
    q: &HeadsView,
    first: usize,
    tile: &Tile,
    split: &Split,
    phases: &[Phase],
    scratch: &mut Scratch,
) -> Result<TileOutput, AttentionError> {
    let (group, head_dim) = (options.shape.group(), options.shape.head_dim());
    let queries = tile.positions.len();
    let lanes = (queries * group).next_multiple_of(options.simd.lanes());

    scratch.queries.clear();
    scratch.queries.resize(head_dim * lanes, 0.0);
    for (query, position) in tile.positions.clone().enumerate() {
        for head in 0..group {
            let row = q.row(position - first, tile.kv_head * group + head);
            for (channel, x) in row.iter().enumerate() {
                scratch.queries[channel * lanes + head * queries + query] = x * options.scale;
            }
        }
    }
    reset(&mut scratch.sums, head_dim * lanes, 0.0);
    reset(&mut scratch.max, lanes, f32::NEG_INFINITY);
    reset(&mut scratch.total, lanes, 0.0);
    reset(&mut scratch.rescale, lanes, 1.0);
    reset(&mut scratch.frame, lanes, 0.0);

    let mut counts = HeadSparsity::default();
    for phase in phases {
        let ranges: Vec<Range<usize>> = tile.positions.clone().map(|p| split.range(phase.part, p)).collect();
        attend_phase(options, phase, tile, &ranges, lanes, scratch, &mut counts);
    }

    let mut rows = vec![0.0; queries * group * head_dim];
    for (query, rows) in rows.chunks_exact_mut(group * head_dim).enumerate() {
        for (head, row) in rows.chunks_exact_mut(head_dim).enumerate() {
            let lane = head * queries + query;
            let weight = 1.0 / scratch.total[lane];
            row.iter_mut()
                .zip(scratch.sums.iter().skip(lane).step_by(lanes))
                .for_each(|(x, sum)| *x = sum * weight);
        }
    }
    // Inputs are finite, so anything else here is a score that left the range of f32.
    let real = &scratch.max[..queries * group];
    if !real.iter().chain(&rows).all(|x| x.is_finite()) {
        return Err(AttentionError::Overflow);
    }
    Ok(TileOutput { rows, counts })
}

fn reset(values: &mut Vec<f32>, len: usize, value: f32) {
    values.clear();
    values.resize(len, value);
}

/// `ranges` are the keys of each query of the tile.
fn attend_phase(
    options: &AttentionOptions,
    phase: &Phase,
    tile: &Tile,
    ranges: &[Range<usize>],
    lanes: usize,
    scratch: &mut Scratch,
    counts: &mut HeadSparsity,
) {
    let (group, head_dim, simd) = (options.shape.group(), options.shape.head_dim(), options.simd);
    let pairs: usize = ranges.iter().map(|range| range.len() * group).sum();
    counts.pairs += pairs as u64;
    if phase.part != Part::Far {
        counts.exact_pairs += pairs as u64;
    }
    if pairs == 0 {
        return;
    }
    if let Some(margin) = phase.skip_margin {
        // Lanes that stand for no query must keep nothing alive.
        reset(&mut scratch.thresholds, lanes, f32::INFINITY);
        let margins = || tile.positions.clone().map(|position| margin.nats(position + 1, ranges.len()));
        let margins = (0..group).flat_map(|_| margins());
        for ((threshold, max), margin) in scratch.thresholds.iter_mut().zip(&scratch.max).zip(margins) {
            *threshold = max - margin;
        }
    }
    // Ranges rise from query to query, but the first ones may be empty.
    let filled = || ranges.iter().filter(|range| !range.is_empty());
    let start = filled().map(|range| range.start).min().unwrap_or(0);
    let end = filled().map(|range| range.end).max().unwrap_or(0);

    for block in start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS) {
        let tokens = start.max(block * BLOCK_TOKENS)..end.min((block + 1) * BLOCK_TOKENS);
        scratch.scores.resize(BLOCK_TOKENS * lanes, 0.0);
        let scores = &mut scratch.scores[..tokens.len() * lanes];
        match phase.keys {
            Keys::Rows(rows) => {
                let keys = rows.read(tokens.clone(), &mut scratch.key_rows);
                simd.scores(keys, &scratch.queries, lanes, scores);
            }
            Keys::Delta(matrix, prepared) => {
                let stream = match prepared.get(block) {
                    Some(stream) => stream,
                    None => {
                        matrix.stream(block, &mut scratch.stream);
                        &scratch.stream
                    }
                };
                let skip = tokens.start - block * BLOCK_TOKENS;
                simd.delta_scores(stream, skip, &scratch.queries, lanes, &mut scratch.frame, scores);
            }
        }
        if let Some(cap) = options.softcap {
            simd.softcap(scores, cap);
        }
        mask(scores, lanes, &tokens, ranges, group);

        let values = phase.values.read(tokens.clone(), &mut scratch.value_rows);
        let (rows, values) = if phase.skip_margin.is_some() {
            let kept = keep_rows(scores, lanes, |row| simd.any_above(row, &scratch.thresholds));
            scratch.kept_values.clear();
            for row in &kept {
                scratch.kept_values.extend_from_slice(&values[row * head_dim..][..head_dim]);
            }
            let seen = |tokens: Range<usize>| -> usize {
                ranges.iter().map(|r| r.end.min(tokens.end).saturating_sub(r.start.max(tokens.start))).sum()
            };
            let kept_pairs: usize =
                kept.iter().map(|row| seen(tokens.start + row..tokens.start + row + 1)).sum();
            counts.skipped_values += ((seen(tokens) - kept_pairs) * group) as u64;
            (kept.len(), &scratch.kept_values[..])
        } else {
            (tokens.len(), values)
        };
        if rows == 0 {
            continue;
        }
        let scores = &mut scratch.scores[..rows * lanes];
        if simd.softmax(scores, lanes, &mut scratch.max, &mut scratch.total, &mut scratch.rescale) {
            simd.rescale(&mut scratch.sums, &scratch.rescale);
        }
        simd.accumulate(values, scores, lanes, &mut scratch.sums);
    }
}

/// Sets the scores of keys outside a query's range to -inf.
fn mask(scores: &mut [f32], lanes: usize, tokens: &Range<usize>, ranges: &[Range<usize>], group: usize) {
    for (query, range) in ranges.iter().enumerate() {
        if range.start <= tokens.start && tokens.end <= range.end {
            continue;
        }
        for (row, token) in tokens.clone().enumerate() {
            if !range.contains(&token) {
                for head in 0..group {
                    scores[row * lanes + head * ranges.len() + query] = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Moves the rows that `keep` accepts to the front and returns their numbers.
fn keep_rows(scores: &mut [f32], lanes: usize, keep: impl Fn(&[f32]) -> bool) -> Vec<usize> {
    let mut kept = Vec::new();
    for row in 0..scores.len() / lanes {
        if keep(&scores[row * lanes..][..lanes]) {
            scores.copy_within(row * lanes..(row + 1) * lanes, kept.len() * lanes);
            kept.push(row);
        }
    }
    kept
}
