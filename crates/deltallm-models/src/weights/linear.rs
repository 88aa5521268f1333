//! Linear maps.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2};

use crate::inputs::{Inputs, Rounded};
use crate::kernels::matmul_transposed_into;
use crate::{QuantisedLinear, TernaryLinear};

/// A linear map: `y = weight x + bias`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Array1<f32>>,
}

/// How the weights of a GGUF file's quantised types (see [`QuantisedLinear`]) are held in memory. Ternary weights are always
/// packed; types that are not quantised stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearForm {
    /// As codes and scales, multiplied with activations of 8 bits: less memory, much faster, and off by the rounding of the
    /// activations.
    #[default]
    Packed,
    /// As the `f32` numbers that they stand for, multiplied in `f32`.
    F32,
}

/// A weight matrix, `[out, in]`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Matrix {
    /// In standard layout.
    Float(Array2<f32>),
    /// Of -1, 0 and 1 with one scale, for inputs that are rounded to 8 bits.
    Ternary(TernaryLinear),
    /// Of blocks of codes with a scale, for inputs that are rounded to 8 bits block by block.
    Quantised(QuantisedLinear),
}

impl Linear {
    /// `x weight^T + bias`: `x` is `[tokens, in]`, the result `[tokens, out]`.
    ///
    /// # Panics
    /// Where `x` has another number of columns than the weight.
    pub fn apply(&self, x: &ArrayView2<f32>) -> Array2<f32> {
        let mut y = Array2::zeros((x.nrows(), self.weight.dim().0));
        self.apply_into(&mut Inputs::new(x.view(), &mut Rounded::default()), y.view_mut());
        y
    }

    /// [`apply`](Self::apply) into `y`, which is in standard layout. Maps of the same inputs round them once.
    pub(crate) fn apply_into(&self, inputs: &mut Inputs<'_>, mut y: ArrayViewMut2<f32>) {
        match &self.weight {
            Matrix::Float(weight) => matmul_transposed_into(&inputs.x, &weight.view(), y.view_mut()),
            Matrix::Ternary(weight) => weight.apply_into(inputs, y.view_mut()),
            Matrix::Quantised(weight) => weight.apply_into(inputs, y.view_mut()),
        }
        if let Some(bias) = &self.bias {
            y += bias;
        }
    }
}

impl Matrix {
    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::Float(weight) => weight.dim(),
            Self::Ternary(weight) => (weight.rows(), weight.columns()),
            Self::Quantised(weight) => (weight.rows(), weight.columns()),
        }
    }

    /// The weights of output `index` as numbers, `[in]`.
    ///
    /// # Panics
    /// Where there is no such output.
    pub fn row(&self, index: usize) -> Array1<f32> {
        match self {
            Self::Float(weight) => weight.row(index).to_owned(),
            Self::Ternary(weight) => {
                let mut codes = vec![0; weight.columns()];
                weight.row(index, &mut codes);
                codes.iter().map(|&code| f32::from(code) * weight.scale()).collect()
            }
            Self::Quantised(weight) => {
                let mut row = Array1::zeros(weight.columns());
                if let Some(row) = row.as_slice_mut() {
                    weight.row(index, row);
                }
                row
            }
        }
    }

    /// All weights as numbers, `[out, in]`.
    pub fn to_dense(&self) -> CowArray<'_, f32, Ix2> {
        match self {
            Self::Float(weight) => weight.into(),
            Self::Ternary(_) | Self::Quantised(_) => {
                let mut dense = Array2::zeros(self.dim());
                for (index, mut row) in dense.axis_iter_mut(Axis(0)).enumerate() {
                    row.assign(&self.row(index));
                }
                dense.into()
            }
        }
    }

    /// The largest difference that rounding the inputs can make to output `index`, as a share of the largest input's
    /// magnitude: half a step, at most 1/254 of it, for every weight. Without rounding it is 0.
    pub fn rounding(&self, index: usize) -> f32 {
        match self {
            Self::Float(_) => 0.0,
            Self::Ternary(_) | Self::Quantised(_) => {
                self.row(index).iter().map(|weight| weight.abs()).sum::<f32>() / 254.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::TernaryError;

    #[test]
    fn a_ternary_matrix_reads_as_its_numbers_and_rounds_within_its_bound() {
        let weights: [[i8; 3]; 2] = [[1, 0, -1], [-1, 1, 1]];
        let ternary = TernaryLinear::from_rows::<TernaryError>(2, 3, 0.5, |row, out| {
            out.copy_from_slice(&weights[row]);
            Ok(())
        })
        .unwrap();
        let weight = Matrix::Ternary(ternary);
        assert_eq!(weight.to_dense(), array![[0.5, 0.0, -0.5], [-0.5, 0.5, 0.5]]);
        assert_eq!(weight.dim(), (2, 3));
        let x = array![[1.0, -0.123, 0.5017]];
        let exact = x.dot(&weight.to_dense().t()) + array![10.0, 20.0];
        let y = Linear { weight, bias: Some(array![10.0, 20.0]) };
        let off = (y.apply(&x.view()) - exact).mapv(f32::abs);
        for index in 0..2 {
            let bound = y.weight.rounding(index) * 1.0;
            assert!(off[[0, index]] > 0.0 && off[[0, index]] <= bound, "{off} {bound}");
        }
    }
}
