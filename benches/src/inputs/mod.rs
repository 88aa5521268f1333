//! What attention is given: q, k, v of every layer, and the settings of the layer's approximate kernels.

pub mod captured;
pub mod shapes;
pub mod synthetic;

use std::{ops::Range, rc::Rc};

use deltallm::{AttentionShape, HeadsView, KernelSpec, SpecOverrides};

use crate::subject::Phase;

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

/// Everything that is attended: one or more windows of tokens, each through all layers.
#[derive(Debug)]
pub struct Inputs {
    /// Where they come from.
    pub name: String,
    /// Head counts, the same in every layer.
    pub shape: AttentionShape,
    /// Windows, each with its layers.
    pub windows: Vec<Vec<Rc<Layer>>>,
    /// Layers of a window.
    pub layers: usize,
    /// What the hybrid variants do, but for their stores.
    pub spec: KernelSpec,
    /// Choose the skip margin for this share of skipped values, at every length and in every phase anew.
    pub values_skipped: Option<f64>,
    /// The settings in words.
    pub description: String,
}

impl Inputs {
    /// The settings for a length.
    ///
    /// # Errors
    /// For settings that a kernel refuses.
    pub fn spec_for(&self, phase: Phase, n: usize) -> anyhow::Result<KernelSpec> {
        let first = self.values_skipped.zip(self.spec.hybrid_config(0, self.shape));
        let Some((share, config)) = first else { return Ok(self.spec.clone()) };
        let margin = synthetic::margin(&self.windows[0][0], &config, share, phase, n)?;
        let skip_margin = Some(Some(margin));
        Ok(self.spec.clone().with(&SpecOverrides { skip_margin, ..SpecOverrides::default() }))
    }
}
