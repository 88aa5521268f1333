//! Models and kernels for tests of whole graphs.

use deltallm_attn::{
    AttentionKernel, AttentionOptions, DeltaAttention, DenseAttention, ExactWindow, HybridAttention,
    HybridConfig, Isa, KvStore, ThresholdPolicy,
};
use deltallm_models::{Model, ModelError, ModelFile};
use ndarray::ArrayView1;

/// The instruction set of these tests: the best, or the one that `DELTALLM_SIMD` names.
pub(crate) fn isa() -> Isa {
    Isa::from_env().expect("DELTALLM_SIMD names an instruction set of this machine")
}

/// The model of a file.
pub(crate) fn load_model(file: ModelFile) -> Result<Model, ModelError> {
    Model::load(&file.with_isa(isa()))
}

/// The usual settings for its attention kernels.
pub(crate) fn options() -> AttentionOptions {
    AttentionOptions::default().store(KvStore::F32).isa(isa())
}

/// Exact attention for every layer.
pub(crate) fn dense_kernels(model: &Model) -> Vec<Box<dyn AttentionKernel>> {
    let options = options();
    (0..model.config().layers)
        .map(|layer| {
            let options = options.clone().mask(model.config().mask(layer));
            Box::new(DenseAttention::new(model.attention_shape(), options).unwrap()) as _
        })
        .collect()
}

/// Attention that approximates nothing, three times for every layer: thresholds of 0 without and with a window, and a window
/// over everything.
pub(crate) fn harmless_kernels(model: &Model) -> [Vec<Box<dyn AttentionKernel>>; 3] {
    let shape = model.attention_shape();
    let options = |layer| options().mask(model.config().mask(layer));
    let hybrid = |layer, window, theta| {
        let config =
            HybridConfig::new(ThresholdPolicy::Uniform(theta)).exact_window(ExactWindow::Sliding(window));
        Box::new(HybridAttention::new(shape, config.options(options(layer))).unwrap())
            as Box<dyn AttentionKernel>
    };
    let makers: [&dyn Fn(usize) -> Box<dyn AttentionKernel>; 3] = [
        &|layer| {
            let thresholds = ThresholdPolicy::Uniform(0.0);
            Box::new(DeltaAttention::new(shape, thresholds, 0, options(layer)).unwrap())
        },
        &|layer| hybrid(layer, 5, 0.0),
        &|layer| hybrid(layer, 1000, 100.0),
    ];
    makers.map(|make| (0..model.config().layers).map(make).collect())
}

/// The id of the largest logit; the first of several.
pub(crate) fn argmax(logits: ArrayView1<f32>) -> u32 {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32
}
