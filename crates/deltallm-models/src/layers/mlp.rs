//! The gated feed-forward layer.

use ndarray::{Array2, Zip};

use super::rms_norm;
use crate::config::Activation;
use crate::{LayerWeights, ModelConfig};

/// `down(norm(f(gate(x)) * up(x)))` (Shazeer, arXiv 2002.05202), with the architecture's activation `f` and, in BitNet
/// models, a norm: `x` and the result are `[tokens, hidden]`.
pub(crate) fn gated_mlp(config: &ModelConfig, layer: &LayerWeights, x: &Array2<f32>) -> Array2<f32> {
    let mut gate = layer.gate.apply(&x.view());
    let up = layer.up.apply(&x.view());
    let product = Zip::from(&mut gate).and(&up);
    match config.architecture.activation() {
        Activation::Silu => product.par_for_each(|g, u| *g = silu(*g) * u),
        Activation::SquaredRelu => product.par_for_each(|g, u| *g = squared_relu(*g) * u),
    }
    let product = match &layer.mlp_sub_norm {
        Some(norm) => rms_norm(&gate, norm, config.norm_eps),
        None => gate,
    };
    layer.down.apply(&product.view())
}

/// `x * sigmoid(x)`.
fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `max(x, 0)^2`. Of inputs in the hundreds, as trained models have them, more than f16 holds.
fn squared_relu(x: f32) -> f32 {
    let x = x.max(0.0);
    x * x
}
