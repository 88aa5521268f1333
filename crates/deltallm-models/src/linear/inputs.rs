//! The input of linear maps.

use deltallm_simd::weight_order::WeightOrder;
use ndarray::ArrayView2;

use super::{quantised::BlockActivations, ternary::TokenActivations};

/// The input of some linear maps, `[tokens, in]`, and what it is rounded to for those that take it in 8 bits: once for all
/// that take the same.
#[derive(Debug)]
pub(crate) struct Inputs<'a> {
    pub(crate) x: ArrayView2<'a, f32>,
    pub(crate) rounded: &'a mut Rounded,
}

/// Memory for rounded inputs, and how the weights that meet them are read.
#[derive(Debug, Default)]
pub(crate) struct Rounded {
    pub(crate) order: WeightOrder,
    pub(crate) ternary: TokenActivations,
    pub(crate) quantised: BlockActivations,
}

impl<'a> Inputs<'a> {
    /// These tokens. `rounded` is memory; its contents are overwritten.
    pub(crate) fn new(x: ArrayView2<'a, f32>, rounded: &'a mut Rounded) -> Self {
        rounded.ternary.clear();
        rounded.quantised.clear();
        Self { x, rounded }
    }
}
