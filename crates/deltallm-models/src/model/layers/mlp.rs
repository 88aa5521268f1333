//! The gated feed-forward layer.

use deltallm_simd::{
    Isa,
    tuning::{GATE_PART, MLP_TOKENS},
};
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Ix2};
use rayon::prelude::*;

use super::gates::{gelu_product, silu_product};
use super::rms_norm_in_place;
use crate::files::config::Activation;
use crate::linear::inputs::{Inputs, Rounded};
use crate::model::buffer::Buffer;
use crate::{LayerWeights, Matrix, ModelConfig};

/// `down(norm(f(gate(x)) * up(x)))` (Shazeer, arXiv 2002.05202), with the architecture's activation `f` and, in BitNet
/// models, a norm: `x` and `y` are `[tokens, hidden]`. The memory is for `gate(x)`, `up(x)` and what
/// inputs are rounded to.
pub(crate) fn gated_mlp(
    isa: Isa,
    config: &ModelConfig,
    layer: &LayerWeights,
    x: &ArrayView2<f32>,
    (gate, up, rounded): (&mut Buffer, &mut Buffer, &mut Rounded),
    mut y: ArrayViewMut2<f32>,
) {
    let tokens = match layer.gate.weight {
        Matrix::Quantised(_) => MLP_TOKENS,
        _ => x.nrows().max(1),
    };
    for (x, y) in x.axis_chunks_iter(Axis(0), tokens).zip(y.axis_chunks_iter_mut(Axis(0), tokens)) {
        let size = Ix2(x.nrows(), layer.gate.weight.dim().0);
        let (mut gate, mut up) = (gate.array(size), up.array(size));
        let mut inputs = Inputs::new(x, rounded);
        layer.gate.apply_into(&mut inputs, gate.view_mut());
        layer.up.apply_into(&mut inputs, up.view_mut());
        match config.architecture.activation() {
            Activation::Silu => for_each_part(isa, gate.view_mut(), &up.view(), silu_product),
            Activation::GeluTanh => for_each_part(isa, gate.view_mut(), &up.view(), gelu_product),
            Activation::SquaredRelu => for_each_part(isa, gate.view_mut(), &up.view(), squared_relu_product),
        }
        if let Some(norm) = &layer.mlp_sub_norm {
            rms_norm_in_place(gate.view_mut(), norm, config.norm_eps);
        }
        layer.down.apply_into(&mut Inputs::new(gate.view(), rounded), y);
    }
}

/// Does `product` for all of `gate` and `up`, by all threads where there is enough to do.
fn for_each_part(
    isa: Isa,
    mut gate: ArrayViewMut2<f32>,
    up: &ArrayView2<f32>,
    product: fn(Isa, &mut [f32], &[f32]),
) {
    let (Some(gate), Some(up)) = (gate.as_slice_mut(), up.as_slice()) else {
        unreachable!("arrays of the workspace are in standard layout")
    };
    if gate.len() <= GATE_PART || rayon::current_num_threads() == 1 {
        product(isa, gate, up);
    } else {
        gate.par_chunks_mut(GATE_PART)
            .zip(up.par_chunks(GATE_PART))
            .for_each(|(gate, up)| product(isa, gate, up));
    }
}

/// `max(x, 0)^2 * up`. Of inputs in the hundreds, as trained models have them, the square is more than f16 holds.
fn squared_relu_product(_: Isa, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        let x = gate.max(0.0);
        *gate = x * x * up;
    }
}
