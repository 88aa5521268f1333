//! What attention is given: q, k, v of every layer, and the settings of the layer's approximate kernels.

pub mod captured;
mod layer;
pub mod margin;
pub mod shapes;
pub mod synthetic;

use std::rc::Rc;

use deltallm::{AttentionShape, KernelContext, KernelSpec, Mask, SpecOverrides};
pub use layer::Layer;

use crate::subject::Phase;

/// Everything that is attended: one or more windows of tokens, each through all layers.
#[derive(Debug)]
pub struct Inputs {
    /// Where they come from.
    pub name: String,
    /// Heads, the same in every layer, and what the queries of each of the model's layers attend to.
    pub context: KernelContext,
    /// Windows, each with its layers.
    pub windows: Vec<Vec<Rc<Layer>>>,
    /// Layers of a window: which one of the model each of them is.
    pub layers: Vec<usize>,
    /// What the hybrid variants do, but for their stores.
    pub spec: KernelSpec,
    /// Choose the skip margin for this share of skipped values, at every length and in every phase anew.
    pub values_skipped: Option<f64>,
    /// The settings in words.
    pub description: String,
}

impl Inputs {
    /// Head counts of every layer.
    pub fn shape(&self) -> AttentionShape {
        self.context.shape
    }

    /// Whether all layers are causal and look back as far as the text goes.
    pub fn is_causal(&self) -> bool {
        self.masks().all(|mask| mask == Mask::Causal)
    }

    /// What each layer's queries attend to.
    pub fn masks(&self) -> impl Iterator<Item = Mask> {
        self.layers.iter().map(|&layer| self.context.mask(layer))
    }

    /// The settings for a length.
    ///
    /// # Errors
    /// For settings that a kernel refuses.
    pub fn spec_for(&self, phase: Phase, n: usize) -> anyhow::Result<KernelSpec> {
        let first = self.values_skipped.zip(self.spec.hybrid_config(0, &self.context));
        let Some((share, config)) = first else { return Ok(self.spec.clone()) };
        let margin = margin::margin(&self.windows[0][0], &config, share, phase, n)?;
        Ok(self.spec.clone().with(&SpecOverrides::default().skip_margin(Some(Some(margin)))))
    }
}
