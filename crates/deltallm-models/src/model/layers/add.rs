//! Sums with the residual stream, and its scale.

use ndarray::{ArrayView2, ArrayViewMut2, Zip};

use super::threads::worth_sharing;

/// `x += update`, both `[tokens, hidden]`.
pub(crate) fn add(x: ArrayViewMut2<f32>, update: &ArrayView2<f32>) {
    let pairs = Zip::from(x).and(update);
    if worth_sharing(update.len()) {
        pairs.par_for_each(|x, update| *x += update);
    } else {
        pairs.for_each(|x, update| *x += update);
    }
}

/// `x *= factor`, `[tokens, hidden]`.
pub(crate) fn scale(mut x: ArrayViewMut2<f32>, factor: f32) {
    if worth_sharing(x.len()) {
        x.par_mapv_inplace(|x| x * factor);
    } else {
        x.mapv_inplace(|x| x * factor);
    }
}
