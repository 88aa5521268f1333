//! Memory that a call of the model needs and the next call uses again.

use ndarray::{ArrayViewMut, Dimension};

use crate::{inputs::Rounded, layers::Turns};

/// The intermediate results of one call at a time.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// The position of each sequence's first token.
    pub(crate) positions: Vec<usize>,
    /// The turns of all tokens.
    pub(crate) turns: Turns,
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

/// Memory for an array that is made anew in every call.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    /// The memory as an array of that shape. It contains what an array of the same size was given last, or something
    /// without meaning.
    pub(crate) fn array<D: Dimension>(&mut self, shape: D) -> ArrayViewMut<'_, f32, D> {
        let len = shape.size();
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        match ArrayViewMut::from_shape(shape, &mut self.0[..len]) {
            Ok(array) => array,
            Err(_) => unreachable!("as many elements as the shape has"),
        }
    }
}
