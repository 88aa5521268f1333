//! Linear layers of 16-bit floats, which are converted on the way: for embeddings and heads, the largest tables of small models.

mod float16;
mod rows;

use deltallm_simd::{
    Isa,
    tuning::{HALF_ROWS, HALF_TOKENS},
    weight_order::WeightOrder,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use crate::linear::inputs::Inputs;
use crate::linear::kernels::matmul_transposed_here;

use float16::Float16;
use rows::TOKENS;

/// A linear map of 16-bit floats, [`half::f16`] or [`half::bf16`], with products and sums in `f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct HalfLinear<T> {
    weights: Array2<T>,
    isa: Isa,
}

impl<T> HalfLinear<T> {
    /// These weights, `[out, in]`, multiplied with the best instruction set of this machine.
    pub fn new(weights: Array2<T>) -> Self {
        Self { weights, isa: Isa::best() }
    }

    /// The same weights, multiplied with another instruction set. Results differ by rounding.
    pub fn with_isa(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }

    /// `[out, in]`.
    pub fn weights(&self) -> &Array2<T> {
        &self.weights
    }

    /// The instruction set that multiplies.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// `x` `[tokens, in]` times the weights, into `y`, `[tokens, out]`. Runs on the current rayon pool; the number of its threads does not
/// change the result.
pub(crate) fn apply_half<T: Float16>(layer: &HalfLinear<T>, inputs: &Inputs<'_>, y: ArrayViewMut2<f32>) {
    multiply(layer.isa, inputs.rounded.order, &inputs.x, &layer.weights.view(), y);
}

fn multiply<T: Float16>(
    isa: Isa,
    order: WeightOrder,
    x: &ArrayView2<f32>,
    w: &ArrayView2<T>,
    mut y: ArrayViewMut2<f32>,
) {
    let (tokens, columns) = x.dim();
    assert_eq!(columns, w.ncols(), "columns of x and w");
    assert_eq!(y.dim(), (tokens, w.nrows()), "shape of y");
    let (x, w) = (x.as_standard_layout(), w.as_standard_layout());
    let rows = HALF_ROWS[usize::from(tokens > HALF_TOKENS)];
    let (Some(w), true) = (w.as_slice(), columns > 0) else { return y.fill(0.0) };
    let task = |wide: &mut Vec<f32>, (index, mut y): (usize, ArrayViewMut2<f32>)| {
        let w = &w[index * rows * columns..][..y.ncols() * columns];
        if tokens > HALF_TOKENS {
            wide.resize(w.len(), 0.0);
            rows::widen(isa, w, wide);
            let Ok(wide) = ArrayView2::from_shape((y.ncols(), columns), wide) else {
                unreachable!("as many numbers as rows times columns")
            };
            matmul_transposed_here(&x.view(), &wide, y);
        } else {
            let blocks = y.axis_chunks_iter_mut(Axis(0), TOKENS);
            for (x, mut y) in x.axis_chunks_iter(Axis(0), TOKENS).zip(blocks) {
                let Some(x) = x.to_slice() else { unreachable!("rows of an array in standard layout") };
                for (w, mut y) in w.chunks_exact(columns).zip(y.axis_iter_mut(Axis(1))) {
                    let sums = rows::products(isa, order, x, w);
                    y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum);
                }
            }
        }
    };
    let tasks = y.axis_chunks_iter_mut(Axis(1), rows);
    if rayon::current_num_threads() == 1 {
        let mut wide = Vec::new();
        tasks.enumerate().for_each(|y| task(&mut wide, y));
    } else {
        tasks.into_par_iter().enumerate().for_each_init(Vec::new, task);
    }
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;
    use half::{bf16, f16};
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    use super::*;

    /// Numbers of both signs and many magnitudes, subnormal ones among them, that look random.
    fn halves(rows: usize, columns: usize, seed: u64) -> Array2<f16> {
        let mut random = Random::scattered(seed);
        Array2::from_shape_simple_fn((rows, columns), || {
            f16::from_bits((random.bits() >> 48) as u16 & 0xbfff)
        })
    }

    /// Compares the products with sums in f64; what they may differ by grows with the magnitudes of the summands.
    fn check<T: Float16>(x: &ArrayView2<f32>, w: &ArrayView2<T>) -> Result<(), TestCaseError> {
        for isa in Isa::available() {
            let mut y = Array2::from_elem((x.nrows(), w.nrows()), f32::NAN);
            multiply(isa, WeightOrder::default(), x, w, y.view_mut());
            for (x, y) in x.outer_iter().zip(y.outer_iter()) {
                for (w, y) in w.outer_iter().zip(y) {
                    let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    prop_assert!((sum - f64::from(*y)).abs() <= 2e-6 * size, "{}: {} {}", isa, sum, y);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_number_of_16_bits_is_widened_exactly() {
        fn check<T: Float16>(from_bits: impl Fn(u16) -> T) {
            let numbers: Vec<_> = (0..=u16::MAX).map(from_bits).collect();
            for isa in Isa::available() {
                let mut wide = vec![1.0; numbers.len()];
                rows::widen(isa, &numbers, &mut wide);
                for (number, wide) in numbers.iter().zip(wide) {
                    let expected = number.widen();
                    assert!(wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan());
                }
            }
        }
        check(f16::from_bits);
        check(bf16::from_bits);
    }

    #[test]
    fn strides_do_not_matter() {
        let x = Array2::from_shape_fn((6, 40), |(i, j)| (i * 40 + j) as f32 * 0.1 - 10.0);
        check(&x.slice(s![..;-2, ..;2]), &halves(7, 40, 3).slice(s![..;3, ..;-2])).unwrap();
    }

    proptest! {
        #[test]
        fn products_are_those_of_f64(
            rows in 1_usize..200, columns in 1_usize..100, tokens in 0_usize..40, seed: u64,
        ) {
            let mut random = Random::scattered(!seed);
            let x = Array2::from_shape_simple_fn((tokens, columns), || random.number());
            let w = halves(rows, columns, seed);
            check(&x.view(), &w.view())?;
            check(&x.view(), &w.mapv(|w| bf16::from_f32(w.to_f32())).view())?;
        }
    }
}
