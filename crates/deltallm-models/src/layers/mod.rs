//! The parts of a decoder layer that are the same in every Llama-like model.

mod mlp;
mod rms_norm;
mod rope;

use ndarray::{Array2, ArrayView2};

pub(crate) use mlp::swiglu;
pub(crate) use rms_norm::rms_norm;
pub(crate) use rope::Rope;

use crate::{Linear, kernels::matmul_transposed};

impl Linear {
    /// `x weight^T + bias`: `x` is `[tokens, in]`, the result `[tokens, out]`.
    pub(crate) fn apply(&self, x: &ArrayView2<f32>) -> Array2<f32> {
        let mut y = matmul_transposed(x, &self.weight.view());
        if let Some(bias) = &self.bias {
            y += bias;
        }
        y
    }
}
