//! The gated feed-forward layer.

use deltallm_attn::SimdLevel;
use ndarray::Array2;
use rayon::prelude::*;

use super::rms_norm;
use crate::config::Activation;
use crate::kernels::{silu_product, simd_level};
use crate::{LayerWeights, ModelConfig};

/// `down(norm(f(gate(x)) * up(x)))` (Shazeer, arXiv 2002.05202), with the architecture's activation `f` and, in BitNet
/// models, a norm: `x` and the result are `[tokens, hidden]`.
pub(crate) fn gated_mlp(config: &ModelConfig, layer: &LayerWeights, x: &Array2<f32>) -> Array2<f32> {
    let mut gate = layer.gate.apply(&x.view());
    let up = layer.up.apply(&x.view());
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
