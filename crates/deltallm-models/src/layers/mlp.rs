//! The gated feed-forward layer.

use ndarray::{Array2, Zip};
use rayon::prelude::*;

use super::rms_norm;
use crate::config::Activation;
use crate::kernels::silu_times;
use crate::{LayerWeights, ModelConfig};

/// Elements that are worth a task of their own.
const SILU_TASK: usize = 1 << 14;

/// `down(norm(f(gate(x)) * up(x)))` (Shazeer, arXiv 2002.05202), with the architecture's activation `f` and, in BitNet
/// models, a norm: `x` and the result are `[tokens, hidden]`.
pub(crate) fn gated_mlp(config: &ModelConfig, layer: &LayerWeights, x: &Array2<f32>) -> Array2<f32> {
    let mut gate = layer.gate.apply(&x.view());
    let up = layer.up.apply(&x.view());
    match config.architecture.activation() {
        Activation::Silu => {
            let (Some(gate), Some(up)) = (gate.as_slice_mut(), up.as_slice()) else {
                unreachable!("products are in standard layout")
            };
            let tasks = gate.par_chunks_mut(SILU_TASK).zip(up.par_chunks(SILU_TASK));
            tasks.for_each(|(gate, up)| silu_times(gate, up));
        }
        Activation::SquaredRelu => {
            Zip::from(&mut gate).and(&up).par_for_each(|g, u| *g = squared_relu(*g) * u);
        }
    }
    let product = match &layer.mlp_sub_norm {
        Some(norm) => rms_norm(&gate, norm, config.norm_eps),
        None => gate,
    };
    layer.down.apply(&product.view())
}

/// `max(x, 0)^2`. Of inputs in the hundreds, as trained models have them, more than f16 holds.
fn squared_relu(x: f32) -> f32 {
    let x = x.max(0.0);
    x * x
}
