//! Chunks of keys that are attended separately, and their rounds.

use std::ops::Range;

use deltallm_core::{BLOCK_TOKENS, HeadSparsity};
use deltallm_simd::tuning::DECODE_CHUNK;

use crate::{
    AttentionShape,
    ranges::multiples,
    segment::Segments,
    window::{Part, Split},
};

/// Blocks of a chunk: few enough to share the work of small heads too, and enough for what merging reads and writes to be little beside
/// their rows.
const BLOCKS: [usize; 2] = [4, 16];

/// A stretch of keys of one segment of one kv head.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) kv_head: usize,
    pub(super) segment: usize,
    pub(super) tokens: Range<usize>,
}

/// Cuts the keys that each kv head of the query at `position` sees into chunks: those of the segments before the first one that skips,
/// and of the rest. Counts the pairs, from zero.
pub(super) fn plan<'a>(
    rounds: &mut [Vec<Chunk>; 2],
    counts: &mut [HeadSparsity],
    shape: AttentionShape,
    position: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
) {
    let group = shape.group();
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
}

/// Multiplications by the key and the value of one token.
pub(super) fn work(shape: AttentionShape) -> usize {
    shape.group().saturating_mul(shape.head_dim().saturating_add(shape.value_dim()))
}

/// Tokens that are attended at a stretch: whole blocks.
fn chunk_tokens(shape: AttentionShape) -> usize {
    let blocks = DECODE_CHUNK / work(shape) / BLOCK_TOKENS;
    blocks.clamp(BLOCKS[0], BLOCKS[1]) * BLOCK_TOKENS
}
