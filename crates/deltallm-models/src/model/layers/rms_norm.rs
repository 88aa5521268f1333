//! Root-mean-square normalisation.

use ndarray::{Array1, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::threads::worth_sharing;

/// `x / sqrt(mean(x^2) + eps) * weight` for each row (Zhang and Sennrich, arXiv 1910.07467).
/// `x` and `y` are `[tokens, hidden]`, `weight` is `[hidden]`.
pub(crate) fn rms_norm(x: &ArrayView2<f32>, weight: &Array1<f32>, eps: f32, mut y: ArrayViewMut2<f32>) {
    let row = |(x, mut y): (ArrayView1<f32>, ArrayViewMut1<f32>)| {
        y.assign(&x);
        normalise(y, weight, eps);
    };
    if worth_sharing(x.len()) {
        x.axis_iter(Axis(0)).into_par_iter().zip(y.axis_iter_mut(Axis(0))).for_each(row);
    } else {
        x.outer_iter().zip(y.outer_iter_mut()).for_each(row);
    }
}

/// [`rms_norm`] of `x` in its place.
pub(crate) fn rms_norm_in_place(mut x: ArrayViewMut2<f32>, weight: &Array1<f32>, eps: f32) {
    let row = |row: ArrayViewMut1<f32>| normalise(row, weight, eps);
    if worth_sharing(x.len()) {
        x.axis_iter_mut(Axis(0)).into_par_iter().for_each(row);
    } else {
        x.outer_iter_mut().for_each(row);
    }
}

fn normalise(mut row: ArrayViewMut1<f32>, weight: &Array1<f32>, eps: f32) {
    let (Some(row), Some(weight)) = (row.as_slice_mut(), weight.as_slice()) else {
        unreachable!("rows of the workspace and norms are contiguous")
    };
    let mean_square = sum_of_squares(row) / row.len() as f64;
    let factor = (1.0 / (mean_square + f64::from(eps)).sqrt()) as f32;
    row.iter_mut().zip(weight).for_each(|(x, w)| *x *= factor * w);
}

/// In sums that do not wait for each other, each of a few squares only.
fn sum_of_squares(row: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut total = 0.0;
    for part in row.chunks(32 * LANES) {
        let mut sums = [0.0_f32; LANES];
        let (vectors, rest) = part.as_chunks::<LANES>();
        for x in vectors {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
        }
        sums.iter_mut().zip(rest).for_each(|(sum, x)| *sum += x * x);
        total += sums.into_iter().map(f64::from).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_mean_square_becomes_the_weight_squared() {
        let (x, weight) = (array![[3.0, 4.0], [0.0, 0.0]], array![2.0, 2.0]);
        let mut y = array![[f32::NAN, f32::NAN], [f32::NAN, f32::NAN]];
        rms_norm(&x.view(), &weight, 1e-6, y.view_mut());
        let mut in_place = x;
        rms_norm_in_place(in_place.view_mut(), &weight, 1e-6);
        assert_eq!(in_place, y);
        let mean_square = (y[[0, 0]] * y[[0, 0]] + y[[0, 1]] * y[[0, 1]]) / 2.0;
        assert!((mean_square - 4.0).abs() < 1e-4);
        assert_eq!(y[[1, 0]], 0.0);
    }
}
