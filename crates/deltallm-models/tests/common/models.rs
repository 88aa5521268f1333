//! Models and kernels for tests of whole graphs.

use deltallm_attn::{AttentionKernel, AttentionOptions, DenseAttention};
use deltallm_models::Model;
use ndarray::ArrayView1;

/// Exact attention for every layer.
pub(crate) fn dense_kernels(model: &Model) -> Vec<Box<dyn AttentionKernel>> {
    let options = AttentionOptions::new(model.attention_shape()).unwrap();
    (0..model.config().layers).map(|_| Box::new(DenseAttention::new(&options).unwrap()) as _).collect()
}

/// The id of the largest logit; the first of several.
pub(crate) fn argmax(logits: ArrayView1<f32>) -> u32 {
    (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best }) as u32
}
