//! Memory that a call of the model needs and the next call uses again.

use super::{buffer::Buffer, layers::Rotations};
use crate::linear::inputs::Rounded;

/// The intermediate results of one call at a time.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The position of each sequence's first token.
    pub(crate) positions: Vec<usize>,
    /// The rotations of all tokens.
    pub(crate) rotations: Rotations,
    /// Those of layers with a window, where they are others.
    pub(crate) local_rotations: Rotations,
    /// The residual stream, `[tokens, hidden_size]`.
    pub(crate) residual: Buffer,
    /// The residual stream after a norm, `[tokens, hidden_size]`.
    pub(crate) normed: Buffer,
    /// Queries, `[tokens, heads, head_dim]`.
    pub(crate) q: Buffer,
    /// Keys, `[tokens, kv_heads, head_dim]`.
    pub(crate) k: Buffer,
    /// Values, `[tokens, kv_heads, head_dim]`.
    pub(crate) v: Buffer,
    /// The results of attention, `[tokens, heads, head_dim]`.
    pub(crate) attended: Buffer,
    /// The two halves of the feed-forward layer, `[tokens, intermediate_size]`.
    pub(crate) gate: Buffer,
    pub(crate) up: Buffer,
    /// What a part of a layer adds to the residual stream, `[tokens, hidden_size]`.
    pub(crate) update: Buffer,
    /// Inputs of projections, in 8 bits.
    pub(crate) rounded: Rounded,
}
