//! The residual connection.

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
