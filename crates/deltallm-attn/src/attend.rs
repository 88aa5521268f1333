//! One call of a kernel: a single token is decoded, more are a prompt or a part of one.

use deltallm_core::HeadSparsity;

use crate::{
    AttentionError, HeadsView, HeadsViewMut, decode, options::Settings, prefill, segment::Segments,
    window::Split,
};

/// Attends `q`, whose first token stands at position `first`, and writes `out`. `segments` knows the segments of each
/// kv head. If all goes well, the pairs of each kv head are added to `counts`.
pub(crate) fn attend<'a>(
    options: &Settings,
    q: &HeadsView,
    first: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
    out: HeadsViewMut,
    counts: &mut [HeadSparsity],
) -> Result<(), AttentionError> {
    match q.tokens() {
        1 => decode::attend(options, q, first, split, segments, out, counts),
        _ => prefill::attend(options, q, first, split, segments, out, counts),
    }
}
