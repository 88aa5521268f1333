//! Products with matrices of 16-bit floats, which are converted on the way: for embeddings and heads, the largest tables of
//! small models.

mod lanes;
mod rows;

use half::{bf16, f16};
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::{matmul::matmul_transposed_here, simd_level};
use lanes::Lanes;
use rows::Instructions;

/// Rows of a task, and of one with more than [`FEW`] tokens.
const ROWS: [usize; 2] = [64, 256];

/// Up to so many tokens the rows are converted for every [`TOKENS`] tokens anew; beyond, once, and multiplied as `f32`.
const FEW: usize = 32;

/// Tokens that share a conversion.
const TOKENS: usize = 4;

/// A 16-bit float.
pub(crate) trait Half: Copy + Send + Sync {
    /// The same number.
    fn widen(self) -> f32;

    /// The numbers from `at` on.
    ///
    /// # Safety
    /// There are `V::LEN`, and the CPU has the instructions of `V`.
    #[allow(unsafe_code, reason = "a declaration")]
    unsafe fn load<V: Lanes>(at: *const Self) -> V;
}

#[allow(unsafe_code, reason = "vectors are read from memory")]
impl Half for bf16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const Self) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load_bf16(at) }
    }
}

#[allow(unsafe_code, reason = "vectors are read from memory")]
impl Half for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(at: *const Self) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load_f16(at) }
    }
}

/// `y = x w^T`: `x` is `[tokens, in]`, `w` `[out, in]`, `y` `[tokens, out]`, with sums in `f32`. Runs on the current rayon
/// pool; the number of its threads does not change the result.
pub(crate) fn matmul_half<T: Half>(x: &ArrayView2<f32>, w: &ArrayView2<T>, y: ArrayViewMut2<f32>) {
    multiply(Instructions::of(simd_level()), x, w, y);
}

fn multiply<T: Half>(
    instructions: Instructions,
    x: &ArrayView2<f32>,
    w: &ArrayView2<T>,
    mut y: ArrayViewMut2<f32>,
) {
    let (tokens, columns) = x.dim();
    assert_eq!(columns, w.ncols(), "columns of x and w");
    assert_eq!(y.dim(), (tokens, w.nrows()), "shape of y");
    let (x, w) = (x.as_standard_layout(), w.as_standard_layout());
    let rows = ROWS[usize::from(tokens > FEW)];
    let (Some(w), true) = (w.as_slice(), columns > 0) else { return y.fill(0.0) };
    let task = |wide: &mut Vec<f32>, (index, mut y): (usize, ArrayViewMut2<f32>)| {
        let w = &w[index * rows * columns..][..y.ncols() * columns];
        if tokens > FEW {
            wide.resize(w.len(), 0.0);
            instructions.widen(w, wide);
            let Ok(wide) = ArrayView2::from_shape((y.ncols(), columns), wide) else {
                unreachable!("as many numbers as rows times columns")
            };
            matmul_transposed_here(&x.view(), &wide, y);
        } else {
            let blocks = y.axis_chunks_iter_mut(Axis(0), TOKENS);
            for (x, mut y) in x.axis_chunks_iter(Axis(0), TOKENS).zip(blocks) {
                let Some(x) = x.to_slice() else { unreachable!("rows of an array in standard layout") };
                for (w, mut y) in w.chunks_exact(columns).zip(y.axis_iter_mut(Axis(1))) {
                    let sums = instructions.products(x, w);
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
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    use deltallm_attn::SimdLevel;

    use super::*;

    /// Numbers of both signs and many magnitudes, subnormal ones among them, that look random.
    fn halves(rows: usize, columns: usize, seed: u64) -> Array2<f16> {
        let mut state = seed | 1;
        Array2::from_shape_simple_fn((rows, columns), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f16::from_bits((state >> 48) as u16 & 0xbfff)
        })
    }

    fn instructions() -> Vec<Instructions> {
        SimdLevel::available().into_iter().map(Instructions::of).collect()
    }

    /// Compares the products with sums in f64; what they may differ by grows with the magnitudes of the summands.
    fn check<T: Half>(x: &ArrayView2<f32>, w: &ArrayView2<T>) -> Result<(), TestCaseError> {
        for instructions in instructions() {
            let mut y = Array2::from_elem((x.nrows(), w.nrows()), f32::NAN);
            multiply(instructions, x, w, y.view_mut());
            for (x, y) in x.outer_iter().zip(y.outer_iter()) {
                for (w, y) in w.outer_iter().zip(y) {
                    let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
                    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                    prop_assert!(
                        (sum - f64::from(*y)).abs() <= 2e-6 * size,
                        "{:?}: {} {}",
                        instructions,
                        sum,
                        y
                    );
                }
            }
        }
        Ok(())
    }

    #[test]
    fn every_number_of_16_bits_is_widened_exactly() {
        fn check<T: Half>(from_bits: impl Fn(u16) -> T) {
            let numbers: Vec<_> = (0..=u16::MAX).map(from_bits).collect();
            for instructions in instructions() {
                let mut wide = vec![1.0; numbers.len()];
                instructions.widen(&numbers, &mut wide);
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
            let x = Array2::from_shape_fn((tokens, columns), |(i, j)| ((i * 31 + j * 17) as f32 + (seed % 999) as f32).sin());
            let w = halves(rows, columns, seed);
            check(&x.view(), &w.view())?;
            check(&x.view(), &w.mapv(|w| bf16::from_f32(w.to_f32())).view())?;
        }
    }
}
