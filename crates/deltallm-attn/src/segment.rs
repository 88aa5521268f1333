//! The segments of a kv head's keys: everything in dense attention; sinks, exact window and far history in hybrid attention.

use std::ops::{Deref, Range};

use deltallm_core::{
    DeltaMatrix,
    internal::{FloatRows, PagedRows, StoredRows},
};

use crate::{HeadsView, SkipMargin, window::Part};

/// Channels are padded to a multiple of this in decoding: the longest vector of any instruction set.
pub(crate) const CHANNELS: usize = 16;

/// Rows of one kv head, addressed by token.
pub(crate) trait TokenRows: Sync {
    /// `[tokens, head_dim]` as f32, borrowed or converted into `scratch`.
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32];

    /// The first of `tokens` in the form they are stored in, as many as lie adjacent, and how many these are. `None` where
    /// a row is not a multiple of [`CHANNELS`], or its page is not held.
    fn stored(&self, tokens: Range<usize>) -> Option<(StoredRows<'_>, usize)>;
}

impl TokenRows for PagedRows {
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.read(tokens, scratch)
    }

    fn stored(&self, tokens: Range<usize>) -> Option<(StoredRows<'_>, usize)> {
        if self.channels().is_multiple_of(CHANNELS) { self.stored(tokens) } else { None }
    }
}

/// One head of keys or values that the caller holds.
pub(crate) struct HeadRows<'v> {
    pub(crate) view: HeadsView<'v>,
    pub(crate) head: usize,
}

impl TokenRows for HeadRows<'_> {
    fn read<'a>(&'a self, tokens: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.clear();
        tokens.for_each(|token| scratch.extend_from_slice(self.view.row(token, self.head)));
        scratch
    }

    fn stored(&self, tokens: Range<usize>) -> Option<(StoredRows<'_>, usize)> {
        let (data, stride) = self.view.rows_from(tokens.start, self.head);
        let rows = StoredRows::F32(FloatRows { data, stride });
        self.view.head_dim().is_multiple_of(CHANNELS).then_some((rows, tokens.len()))
    }
}

/// How the keys of a segment are held.
#[derive(Clone, Copy)]
pub(crate) enum SegmentKeys<'a> {
    /// Whole: a score is `q . k`.
    Rows(&'a dyn TokenRows),
    /// As deltas: a score is `q . khat`.
    Deltas(&'a DeltaMatrix),
}

/// Some of the keys of every query, and their values.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) keys: SegmentKeys<'a>,
    pub(crate) values: &'a dyn TokenRows,
    pub(crate) part: Part,
    /// Skip values that are by this margin or more below the best score of the segments before (`docs/method.md`, equation 5).
    pub(crate) skip_margin: Option<SkipMargin>,
}

/// The segments of one kv head, in the order in which they are attended.
#[derive(Clone, Copy)]
pub(crate) enum Segments<'a> {
    One([Segment<'a>; 1]),
    Three([Segment<'a>; 3]),
}

impl<'a> Deref for Segments<'a> {
    type Target = [Segment<'a>];

    fn deref(&self) -> &[Segment<'a>] {
        match self {
            Self::One(segments) => segments,
            Self::Three(segments) => segments,
        }
    }
}
