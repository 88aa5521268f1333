//! Linear maps, and the forms in which their weights are held and multiplied.
//!
//! [`matrix`] is the choice between the forms: [`half`], [`quantised`] and [`ternary`], each in a folder of its own, and `f32`, which the
//! crate `gemm` multiplies. [`inputs`] rounds what they multiply, once for all maps of the same input; [`kernels`] is what the packed
//! forms share.

pub(crate) mod error;
pub(crate) mod half;
pub(crate) mod inputs;
pub(crate) mod kernels;
pub(crate) mod matrix;
pub(crate) mod quantised;
pub(crate) mod ternary;

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2};

use self::error::LinearError;
use self::inputs::{Inputs, Rounded};
use self::matrix::Matrix;

/// A linear map: `y = weight x + bias`.
///
/// ```
/// use deltallm_models::{Linear, Matrix};
/// use ndarray::array;
///
/// let linear = Linear { weight: Matrix::F32(array![[1.0, 2.0], [0.0, -1.0]]), bias: Some(array![0.5, 0.0]) };
/// assert_eq!(linear.apply(&array![[3.0, 4.0]].view())?, array![[11.5, -4.0]]);
/// # Ok::<(), deltallm_models::LinearError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Array1<f32>>,
}

/// How the weights of a GGUF file's quantised types (see [`QuantisedLinear`](crate::QuantisedLinear)) are held in memory.
/// Ternary weights are always packed; types that are not quantised stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LinearForm {
    /// As codes and scales, multiplied with activations of 8 bits: less memory, much faster, and off by the rounding of the
    /// activations.
    #[default]
    Packed,
    /// As the `f32` numbers that they stand for, multiplied in `f32`.
    F32,
}

impl Linear {
    /// `x weight^T + bias`: `x` is `[tokens, in]`, the result `[tokens, out]`.
    ///
    /// # Errors
    /// [`LinearError::Columns`] where `x` has another number of columns than the weight, [`LinearError::Bias`] where the bias
    /// has another length than there are outputs.
    pub fn apply(&self, x: &ArrayView2<f32>) -> Result<Array2<f32>, LinearError> {
        let (rows, columns) = self.weight.dim();
        LinearError::check_columns(columns, x.ncols())?;
        if let Some(got) = self.bias.as_ref().map(Array1::len).filter(|len| *len != rows) {
            return Err(LinearError::Bias { expected: rows, got });
        }
        let mut y = Array2::zeros((x.nrows(), rows));
        self.apply_into(&mut Inputs::new(x.view(), &mut Rounded::default()), y.view_mut());
        Ok(y)
    }

    /// [`apply`](Self::apply) into `y`, which is in standard layout. Maps of the same inputs round them once.
    pub(crate) fn apply_into(&self, inputs: &mut Inputs<'_>, mut y: ArrayViewMut2<f32>) {
        self.weight.apply_into(inputs, y.view_mut());
        if let Some(bias) = &self.bias {
            y += bias;
        }
    }
}
