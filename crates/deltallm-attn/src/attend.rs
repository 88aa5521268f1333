//! One call of a kernel: a single token is decoded, more are a prompt or a part of one.

use crate::{
    AttentionError, HeadsView, decode, options::Settings, output::Output, prefill, segment::Segments,
    window::Split,
};

/// Attends `q`, whose first token stands at position `first`. `segments` knows the segments of each kv head.
pub(crate) fn attend<'a>(
    options: &Settings,
    q: &HeadsView,
    first: usize,
    split: &Split,
    segments: &(dyn Fn(usize) -> Segments<'a> + Sync),
    output: Output,
) -> Result<(), AttentionError> {
    match q.tokens() {
        1 => decode::attend(options, q, first, split, segments, output),
        _ => prefill::attend(options, q, first, split, segments, output),
    }
}
