//! Inputs shared by the benchmarks.

use deltallm::{AttentionShape, HeadsView};

/// Queries, keys and values of one layer: `q` is `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]`.
pub struct Inputs {
    /// Head counts.
    pub shape: AttentionShape,
    /// Tokens.
    pub tokens: usize,
    /// Queries.
    pub q: Vec<f32>,
    /// Keys: in every channel a random walk that is pulled back to zero, so that neighbouring keys resemble each other.
    pub k: Vec<f32>,
    /// Values, without any correlation along the tokens.
    pub v: Vec<f32>,
}

impl Inputs {
    /// Synthetic inputs, the same for the same arguments.
    pub fn synthetic(shape: AttentionShape, tokens: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let (heads, kv_heads, d) = (shape.heads(), shape.kv_heads(), shape.head_dim());
        let q = (0..tokens * heads * d).map(|_| random()).collect();
        let v = (0..tokens * kv_heads * d).map(|_| random()).collect();
        let mut key = vec![0.0_f32; kv_heads * d];
        let k = (0..tokens)
            .flat_map(|_| {
                key.iter_mut().for_each(|x| *x = 0.9 * *x + 0.6 * random());
                key.clone()
            })
            .collect();
        Self { shape, tokens, q, k, v }
    }

    /// The queries from token `first` on.
    pub fn q(&self, first: usize) -> HeadsView<'_> {
        self.view(&self.q, self.shape.heads(), first)
    }

    /// The keys from token `first` on.
    pub fn k(&self, first: usize) -> HeadsView<'_> {
        self.view(&self.k, self.shape.kv_heads(), first)
    }

    /// The values from token `first` on.
    pub fn v(&self, first: usize) -> HeadsView<'_> {
        self.view(&self.v, self.shape.kv_heads(), first)
    }

    fn view<'a>(&self, data: &'a [f32], heads: usize, first: usize) -> HeadsView<'a> {
        let shape = [self.tokens - first, heads, self.shape.head_dim()];
        HeadsView::new(&data[first * heads * self.shape.head_dim()..], shape)
            .expect("the data have this shape")
    }
}
