//! A checked call of the `gemm` crate.

use gemm::{Parallelism, gemm};
use ndarray::{ArrayView2, ArrayViewMut2};

/// `y = x w^T`: `x` is `[tokens, in]`, `w` is `[out, in]`, `y` `[tokens, out]`. Runs on the current rayon pool.
pub(crate) fn matmul_transposed(x: &ArrayView2<f32>, w: &ArrayView2<f32>, y: ArrayViewMut2<f32>) {
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    multiply(x, w, y, parallelism);
}

/// The same on this thread.
pub(crate) fn matmul_transposed_here(x: &ArrayView2<f32>, w: &ArrayView2<f32>, y: ArrayViewMut2<f32>) {
    multiply(x, w, y, Parallelism::None);
}

#[allow(unsafe_code, reason = "the library's interface takes pointers and strides")]
fn multiply(x: &ArrayView2<f32>, w: &ArrayView2<f32>, mut y: ArrayViewMut2<f32>, parallelism: Parallelism) {
    let ((tokens, inner), (out, w_inner)) = (x.dim(), w.dim());
    assert_eq!(inner, w_inner, "columns of x and w");
    assert_eq!(y.dim(), (tokens, out), "shape of y");
    // SAFETY: each pointer and its strides come from an array that lives through the call and whose dimensions are
    // those passed: x is tokens x inner, w^T (strides exchanged) is inner x out, y is tokens x out. y is borrowed mutably,
    // so it overlaps neither input, and nothing else can see it.
    unsafe {
        gemm(
            tokens,
            out,
            inner,
            y.as_mut_ptr(),
            y.strides()[1],
            y.strides()[0],
            false,
            x.as_ptr(),
            x.strides()[1],
            x.strides()[0],
            w.as_ptr(),
            w.strides()[0],
            w.strides()[1],
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::*;

    #[test]
    fn equals_the_plain_product_for_any_strides() {
        let x = Array2::from_shape_fn((6, 10), |(i, j)| (i * 10 + j) as f32 * 0.1);
        let w = Array2::from_shape_fn((14, 10), |(i, j)| ((i * 7 + j * 3) % 11) as f32 - 5.0);
        for (x, w) in [
            (x.view(), w.view()),
            (x.slice(s![..1, ..]), w.view()),
            (x.slice(s![..;-2, ..;3]), w.slice(s![1..;4, ..;3])),
        ] {
            let expected = x.dot(&w.t());
            let mut got = Array2::from_elem(expected.dim(), f32::NAN);
            matmul_transposed(&x, &w, got.view_mut());
            assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{got} {expected}");
        }
    }
}
