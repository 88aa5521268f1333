//! The gated feed-forward layer.

use ndarray::{Array2, ArrayView2, Axis, Zip};
use rayon::prelude::*;

use super::rms_norm;
use crate::config::Activation;
use crate::kernels::silu_times;
use crate::{LayerWeights, Matrix, ModelConfig};

/// Elements that are worth a task of their own.
const SILU_TASK: usize = 1 << 14;

/// Tokens that go through a quantised layer together: `gate` and `up` of so many stay in the second cache.
const QUANTISED_TOKENS: usize = 128;

/// `down(norm(f(gate(x)) * up(x)))` (Shazeer, arXiv 2002.05202), with the architecture's activation `f` and, in BitNet
/// models, a norm: `x` and the result are `[tokens, hidden]`.
pub(crate) fn gated_mlp(config: &ModelConfig, layer: &LayerWeights, x: &Array2<f32>) -> Array2<f32> {
    if x.nrows() <= QUANTISED_TOKENS || !matches!(layer.gate.weight, Matrix::Quantised(_)) {
        return all_at_once(config, layer, x.view());
    }
    let mut y = Array2::zeros(x.dim());
    let parts = y.axis_chunks_iter_mut(Axis(0), QUANTISED_TOKENS);
    for (x, mut y) in x.axis_chunks_iter(Axis(0), QUANTISED_TOKENS).zip(parts) {
        y.assign(&all_at_once(config, layer, x));
    }
    y
}

fn all_at_once(config: &ModelConfig, layer: &LayerWeights, x: ArrayView2<f32>) -> Array2<f32> {
    let mut gate = layer.gate.apply(&x);
    let up = layer.up.apply(&x);
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
