//! What one layer's attention is given.

use std::ops::Range;

use deltallm::{AttentionShape, HeadsView};

/// Queries, keys and values of one layer, after RoPE.
#[derive(Debug)]
pub struct Layer {
    /// Head counts.
    pub shape: AttentionShape,
    /// `[tokens, heads, head_dim]`.
    pub q: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`.
    pub k: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`.
    pub v: Vec<f32>,
}

impl Layer {
    /// The queries of these tokens.
    pub fn q(&self, tokens: Range<usize>) -> HeadsView<'_> {
        self.view(&self.q, self.shape.heads(), tokens)
    }

    /// The keys of these tokens.
    pub fn k(&self, tokens: Range<usize>) -> HeadsView<'_> {
        self.view(&self.k, self.shape.kv_heads(), tokens)
    }

    /// The values of these tokens.
    pub fn v(&self, tokens: Range<usize>) -> HeadsView<'_> {
        self.view(&self.v, self.shape.kv_heads(), tokens)
    }

    fn view<'a>(&self, data: &'a [f32], heads: usize, tokens: Range<usize>) -> HeadsView<'a> {
        let (row, dims) = (heads * self.shape.head_dim(), [tokens.len(), heads, self.shape.head_dim()]);
        HeadsView::new(&data[tokens.start * row..tokens.end * row], dims).expect("the data have this shape")
    }
}
