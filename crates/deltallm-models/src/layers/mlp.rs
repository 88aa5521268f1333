//! The gated feed-forward layer.

use ndarray::{Array2, Zip};

use crate::LayerWeights;

/// `down(silu(gate(x)) * up(x))` (Shazeer, arXiv 2002.05202): `x` and the result are `[tokens, hidden]`.
pub(crate) fn swiglu(layer: &LayerWeights, x: &Array2<f32>) -> Array2<f32> {
    let mut gate = layer.gate.apply(&x.view());
    let up = layer.up.apply(&x.view());
    Zip::from(&mut gate).and(&up).par_for_each(|g, u| *g = silu(*g) * u);
    layer.down.apply(&gate.view())
}

/// `x * sigmoid(x)`.
fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
