//! Models and kernels for tests of whole graphs.

use deltallm_attn::{AttentionKernel, AttentionOptions, DenseAttention, Isa};
use deltallm_models::{Model, ModelError, ModelFile};
use ndarray::ArrayView1;

/// The instruction set of these tests: the best, or the one that `DELTALLM_SIMD` names.
pub(crate) fn isa() -> Isa {
    Isa::from_env().expect("DELTALLM_SIMD names an instruction set of this machine")
}

/// The model of a file.
pub(crate) fn load_model(file: ModelFile) -> Result<Model, ModelError> {
    Model::load(&file.with_isa(isa()), &mut |_, _| {})
}

/// The usual settings for its attention kernels.
pub(crate) fn options_for(model: &Model) -> AttentionOptions {
    AttentionOptions { isa: isa(), ..AttentionOptions::new(model.attention_shape()) }
}

/// Exact attention for every layer.
pub(crate) fn dense_kernels(model: &Model) -> Vec<Box<dyn AttentionKernel>> {
    let options = options_for(model);
    (0..model.config().layers).map(|_| Box::new(DenseAttention::new(&options).unwrap()) as _).collect()
}

/// The id of the largest logit; the first of several.
pub(crate) fn argmax(logits: ArrayView1<f32>) -> u32 {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32
}
