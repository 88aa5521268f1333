//! What attention is given: q, k, v of every layer, and the settings of the layer's approximate kernels.

pub mod captured;
mod layer;
pub mod margin;
pub mod shapes;
pub mod synthetic;

use std::rc::Rc;

use deltallm::AttentionShape;
pub use layer::Layer;

use crate::settings::LayerSettings;
use crate::subject::Phase;

/// Everything that is attended: one or more windows of tokens, each through all layers.
#[derive(Debug)]
pub struct Inputs {
    /// Where they come from.
    pub name: String,
    /// Head counts, the same in every layer.
    pub shape: AttentionShape,
    /// Windows, each with its layers.
    pub windows: Vec<Vec<Rc<Layer>>>,
    /// Settings of every layer.
    pub settings: Vec<LayerSettings>,
    /// Choose the skip margin for this share of skipped values, at every length and in every phase anew.
    pub values_skipped: Option<f64>,
    /// The settings in words.
    pub description: String,
}

impl Inputs {
    /// Layers of a window.
    pub fn layers(&self) -> usize {
        self.settings.len()
    }

    /// The settings of every layer for a length.
    ///
    /// # Errors
    /// For settings that a kernel refuses.
    pub fn settings_for(&self, phase: Phase, n: usize) -> anyhow::Result<Vec<LayerSettings>> {
        let mut settings = self.settings.clone();
        if let (Some(share), Some(first)) = (self.values_skipped, settings.first()) {
            let margin = margin::margin(&self.windows[0][0], &first.config, share, phase, n)?;
            settings.iter_mut().for_each(|layer| layer.config.skip_margin = Some(margin));
        }
        Ok(settings)
    }
}
