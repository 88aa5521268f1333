//! The gated feed-forward layer.

use deltallm_attn::SimdLevel;
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::rms_norm;
use crate::config::Activation;
use crate::kernels::{silu_product, simd_level};
use crate::{LayerWeights, Matrix, ModelConfig};

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
        Activation::Silu => for_each_part(&mut gate, &up, silu_product),
        Activation::SquaredRelu => for_each_part(&mut gate, &up, squared_relu_product),
    }
    let product = match &layer.mlp_sub_norm {
        Some(norm) => rms_norm(&gate, norm, config.norm_eps),
        None => gate,
    };
    layer.down.apply(&product.view())
}

/// Does `product` for all of `gate` and `up`, by all threads where there is enough to do.
fn for_each_part(gate: &mut Array2<f32>, up: &Array2<f32>, product: fn(SimdLevel, &mut [f32], &[f32])) {
    // Enough work for a task to be worth its hand-over.
    const PART: usize = 1 << 14;
    let level = simd_level();
    // Made by projections just now, so in standard layout.
    let (Some(gate), Some(up)) = (gate.as_slice_mut(), up.as_slice()) else {
        unreachable!("not in standard layout")
    };
    if gate.len() <= PART || rayon::current_num_threads() == 1 {
        product(level, gate, up);
    } else {
        gate.par_chunks_mut(PART).zip(up.par_chunks(PART)).for_each(|(gate, up)| product(level, gate, up));
    }
}

/// `max(x, 0)^2 * up`. Of inputs in the hundreds, as trained models have them, the square is more than f16 holds.
fn squared_relu_product(_: SimdLevel, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = gate.max(0.0);
        *gate = x * x * up;
    }
}
