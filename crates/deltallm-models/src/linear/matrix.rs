//! Weight matrices in the forms that they are multiplied in.

use half::{bf16, f16};
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2, Zip};

use super::error::LinearError;
use super::half::apply_half;
use super::inputs::{Inputs, Rounded};
use super::kernels::matmul_transposed;
use crate::{HalfLinear, QuantisedLinear, TernaryLinear};

/// A weight matrix, `[out, in]` in standard layout: a projection, the head, or the embedding, whose rows are those of tokens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Matrix {
    /// Single precision; also what types without a form of their own become.
    F32(Array2<f32>),
    /// Half precision, as in the file.
    F16(HalfLinear<f16>),
    /// The upper half of an `f32`, as in the file.
    Bf16(HalfLinear<bf16>),
    /// Of -1, 0 and 1 with one scale, for inputs that are rounded to 8 bits.
    Ternary(TernaryLinear),
    /// Of blocks of codes with a scale, for inputs that are rounded to 8 bits block by block.
    Quantised(QuantisedLinear),
}

impl Matrix {
    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Self::F32(weight) => weight.dim(),
            Self::F16(weight) => weight.weights().dim(),
            Self::Bf16(weight) => weight.weights().dim(),
            Self::Ternary(weight) => (weight.rows(), weight.columns()),
            Self::Quantised(weight) => (weight.rows(), weight.columns()),
        }
    }

    /// Memory of the weights.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(weight) => size_of::<f32>() * weight.len(),
            Self::F16(weight) => size_of::<f16>() * weight.weights().len(),
            Self::Bf16(weight) => size_of::<bf16>() * weight.weights().len(),
            Self::Ternary(weight) => weight.bytes(),
            Self::Quantised(weight) => weight.bytes(),
        }
    }

    /// Whether the weights are codes with scales.
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self, Self::Ternary(_) | Self::Quantised(_))
    }

    /// `x weight^T`: `x` is `[tokens, in]`, the result `[tokens, out]`. Runs on the current rayon pool.
    ///
    /// # Errors
    /// [`LinearError::Columns`] where `x` has another number of columns than the weight.
    pub fn apply(&self, x: &ArrayView2<f32>) -> Result<Array2<f32>, LinearError> {
        LinearError::check_columns(self.dim().1, x.ncols())?;
        Ok(self.apply_inputs(&mut Inputs::new(x.view(), &mut Rounded::default())))
    }

    /// [`apply`](Self::apply), with memory for rounding. The columns are those of the weight.
    pub(crate) fn apply_inputs(&self, inputs: &mut Inputs<'_>) -> Array2<f32> {
        let mut y = Array2::zeros((inputs.x.nrows(), self.dim().0));
        self.apply_into(inputs, y.view_mut());
        y
    }

    /// [`apply`](Self::apply) into `y`, which is in standard layout. Matrices of the same inputs round them once.
    pub(crate) fn apply_into(&self, inputs: &mut Inputs<'_>, y: ArrayViewMut2<f32>) {
        match self {
            Self::F32(weight) => matmul_transposed(&inputs.x, &weight.view(), y),
            Self::F16(weight) => apply_half(weight, inputs, y),
            Self::Bf16(weight) => apply_half(weight, inputs, y),
            Self::Ternary(weight) => weight.apply_into(inputs, y),
            Self::Quantised(weight) => weight.apply_into(inputs, y),
        }
    }

    /// The weights of output `index` as numbers, `[in]`.
    ///
    /// # Errors
    /// [`LinearError::Row`] where there is no such output.
    pub fn row(&self, index: usize) -> Result<Array1<f32>, LinearError> {
        Ok(self.rows(&[index])?.index_axis_move(Axis(0), 0))
    }

    /// The weights of some outputs as numbers, `[outputs, in]`.
    ///
    /// # Errors
    /// [`LinearError::Row`] where there is no such output.
    pub fn rows(&self, indices: &[usize]) -> Result<Array2<f32>, LinearError> {
        let (outputs, columns) = self.dim();
        indices.iter().try_for_each(|index| LinearError::check_row(outputs, *index))?;
        let mut rows = Array2::zeros((indices.len(), columns));
        self.rows_into(indices.iter().copied(), rows.view_mut());
        Ok(rows)
    }

    /// [`rows`](Self::rows) that exist, into `rows`, which is in standard layout.
    pub(crate) fn rows_into(&self, indices: impl IntoIterator<Item = usize>, mut rows: ArrayViewMut2<f32>) {
        for (index, mut row) in indices.into_iter().zip(rows.outer_iter_mut()) {
            match self {
                Self::F32(weight) => row.assign(&weight.row(index)),
                Self::F16(weight) => {
                    Zip::from(row).and(weight.weights().row(index)).for_each(|x, half| *x = half.to_f32());
                }
                Self::Bf16(weight) => {
                    Zip::from(row).and(weight.weights().row(index)).for_each(|x, half| *x = half.to_f32());
                }
                Self::Ternary(weight) => {
                    let mut codes = vec![0; weight.columns()];
                    weight.codes_of(index, &mut codes);
                    row.iter_mut().zip(codes).for_each(|(x, code)| *x = f32::from(code) * weight.scale());
                }
                Self::Quantised(weight) => {
                    if let Some(row) = row.as_slice_mut() {
                        weight.weights_of(index, row);
                    }
                }
            }
        }
    }

    /// All weights as numbers, `[out, in]`.
    pub fn to_dense(&self) -> CowArray<'_, f32, Ix2> {
        match self {
            Self::F32(weight) => weight.into(),
            _ => {
                let mut dense = Array2::zeros(self.dim());
                self.rows_into(0..self.dim().0, dense.view_mut());
                dense.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;
    use crate::{Linear, TernaryError};

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
        let off = (y.apply(&x.view()).unwrap() - exact).mapv(f32::abs);
        for index in 0..2 {
            // Half a step of the largest input, which is 1, for every weight.
            let bound = y.weight.row(index).unwrap().mapv(f32::abs).sum() / 254.0;
            assert!(off[[0, index]] > 0.0 && off[[0, index]] <= bound, "{off} {bound}");
        }
    }

    #[test]
    fn halves_read_and_multiply_as_their_numbers() {
        let dense = array![[1.5, -2.0, 0.25], [0.0, 3.0, -0.125]];
        let x = array![[1.0, 2.0, 4.0], [-1.0, 0.5, 8.0]];
        let halves = [
            Matrix::F16(HalfLinear::new(dense.mapv(f16::from_f32))),
            Matrix::Bf16(HalfLinear::new(dense.mapv(bf16::from_f32))),
        ];
        for weight in halves {
            assert_eq!((weight.dim(), weight.bytes()), ((2, 3), 12));
            assert_eq!(weight.to_dense(), dense);
            assert_eq!(weight.row(1).unwrap(), dense.row(1));
            assert_eq!(weight.apply(&x.view()).unwrap(), x.dot(&dense.t()));
        }
    }
}
