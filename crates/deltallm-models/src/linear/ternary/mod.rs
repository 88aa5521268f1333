//! The linear layer of BitNet b1.58: ternary weights, 8-bit activations (Ma et al., arXiv 2402.17764).
//!
//! Reading order: [`layout`] (how weights lie in memory), [`activations`] (how a token becomes 8-bit numbers), [`simd`]
//! (which instructions add up the products, in [`vector`] and `arch` for one token and [`matrix`] for several), then [`scalar`], which says in plain
//! loops what they all compute.

mod activations;
mod arch;
mod error;
mod layout;
mod matrix;
mod scalar;
mod simd;
#[cfg(test)]
mod tests;
mod vector;

use deltallm_simd::{Isa, dot::ByteKernel, tuning::LEAST_UNPACKED_TOKENS, weight_order::WeightOrder};
use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

pub use error::TernaryError;

pub(crate) use activations::TokenActivations;

use activations::TokenScale;
use layout::TernaryPanels;
use simd::MAX_TOKENS;

use crate::linear::error::LinearError;
use crate::linear::inputs::{Inputs, Rounded};
use crate::linear::kernels::{Line, PANEL, for_each_task};

/// Panels of a task: what a thread takes at a time, and what the kernels for many tokens multiply side by side.
const TASK_PANELS: usize = 2;

/// A linear map whose weights are -1, 0 or 1, at 2 bits each, with one scale for all.
///
/// A token `x` is rounded to 8 bits first: `s = 127 / max(max |x|, 1e-5)` and `q = round(x s)`, half to even, which is
/// between -127 and 127 (`ActQuant` of `transformers`). Then `y = (W q) * (scale / s)`: the products are added up in 32-bit
/// integers, exactly, the quotient is rounded to `f32`, and so is its product with the sum. The answer is therefore the
/// same, bit for bit, whatever the instructions and the number of threads.
///
/// ```
/// use deltallm_models::{TernaryError, TernaryLinear};
/// use ndarray::array;
///
/// let weights: [[i8; 3]; 2] = [[1, 0, -1], [1, 1, 1]];
/// let linear = TernaryLinear::from_rows::<TernaryError>(2, 3, 0.5, |row, out| {
///     out.copy_from_slice(&weights[row]);
///     Ok(())
/// })?;
/// let y = linear.apply(&array![[127.0, 3.0, -1.0]].view())?;
/// assert_eq!(y, array![[64.0, 64.5]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryLinear {
    panels: TernaryPanels,
    scale: f32,
    kernel: ByteKernel,
}

impl TernaryLinear {
    /// The most columns: any sum of products then fits 32 bits, with room for codes that are not shifted down, and is exact
    /// in `f32`.
    pub const MAX_COLUMNS: usize = 1 << 17;

    /// Packs `rows` rows (output channels) of `columns` weights (input channels). `fill(row, out)` writes row `row`; it is
    /// called once for every row, from the threads of the current rayon pool.
    ///
    /// The instructions are the fastest of this machine, until [`with_kernel`](Self::with_kernel) says otherwise.
    ///
    /// # Errors
    /// What `fill` answers; [`TernaryError`] for sizes out of range or beyond the machine's memory, a scale that is not finite,
    /// or a weight other than -1, 0 and 1.
    pub fn from_rows<E: From<TernaryError> + Send>(
        rows: usize,
        columns: usize,
        scale: f32,
        fill: impl Fn(usize, &mut [i8]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        if rows == 0 || columns == 0 || columns > Self::MAX_COLUMNS {
            return Err(TernaryError::Shape { max_columns: Self::MAX_COLUMNS, rows, columns }.into());
        }
        if !scale.is_finite() {
            return Err(TernaryError::Scale { got: scale }.into());
        }
        let panels = TernaryPanels::pack(rows, columns, fill)?;
        Ok(Self { panels, scale, kernel: ByteKernel::of(Isa::best()) })
    }

    /// The same weights, multiplied with other instructions. The results stay the same.
    pub fn with_kernel(self, kernel: ByteKernel) -> Self {
        Self { kernel, ..self }
    }

    /// Output channels.
    pub fn rows(&self) -> usize {
        self.panels.rows()
    }

    /// Input channels.
    pub fn columns(&self) -> usize {
        self.panels.columns()
    }

    /// What all weights are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The instructions that multiply.
    pub fn kernel(&self) -> ByteKernel {
        self.kernel
    }

    /// Writes the weights of a row, each -1, 0 or 1, without the scale.
    ///
    /// # Errors
    /// [`LinearError::Row`] where there is no such row, [`LinearError::RowLength`] where `out` does not have
    /// [`columns`](Self::columns) elements.
    pub fn row(&self, row: usize, out: &mut [i8]) -> Result<(), LinearError> {
        LinearError::check_row(self.rows(), row)?;
        LinearError::check_room(self.columns(), out.len())?;
        self.codes_of(row, out);
        Ok(())
    }

    /// [`row`](Self::row) of a row that exists.
    pub(crate) fn codes_of(&self, row: usize, out: &mut [i8]) {
        self.panels.row(row, out);
    }

    /// Memory of the packed weights: two bits each, rows and columns rounded up to multiples of 16.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// `x` `[tokens, columns]` to `[tokens, rows]`. Runs on the current rayon pool.
    ///
    /// A token with a number that is NaN or infinite gives a row of NaN, as in `transformers`; other tokens are not
    /// affected.
    ///
    /// # Errors
    /// [`LinearError::Columns`] where `x` does not have [`columns`](Self::columns) columns.
    pub fn apply(&self, x: &ArrayView2<f32>) -> Result<Array2<f32>, LinearError> {
        LinearError::check_columns(self.columns(), x.ncols())?;
        let mut y = Array2::zeros((x.nrows(), self.rows()));
        self.apply_into(&mut Inputs::new(x.view(), &mut Rounded::default()), y.view_mut());
        Ok(y)
    }

    /// [`apply`](Self::apply) into `y`.
    pub(crate) fn apply_into(&self, inputs: &mut Inputs<'_>, y: ArrayViewMut2<f32>) {
        let (tokens, columns) = inputs.x.dim();
        assert_eq!(columns, self.columns(), "columns of x and of the weights");
        assert_eq!(y.dim(), (tokens, self.rows()), "shape of y");
        let block = if tokens < LEAST_UNPACKED_TOKENS { 1 } else { simd::tokens(self.kernel) };
        inputs.rounded.ternary.round(self.kernel, &inputs.x, self.panels.quads(), block);
        let (activations, order) = (&inputs.rounded.ternary, inputs.rounded.order);
        let task = |scratch: &mut Vec<Line>, (index, y): (usize, ArrayViewMut2<f32>)| {
            let panels = self.panels.panels(index * TASK_PANELS, TASK_PANELS);
            if block == 1 {
                self.vectors(panels, activations, order, y);
            } else {
                self.matrix(panels, activations, scratch, y);
            }
        };
        let work = TASK_PANELS * PANEL * columns * tokens;
        for_each_task(y, TASK_PANELS * PANEL, work, task);
    }

    /// The columns of `y` that belong to `panels`, token by token.
    fn vectors(
        &self,
        panels: &[Line],
        activations: &TokenActivations,
        order: WeightOrder,
        mut y: ArrayViewMut2<f32>,
    ) {
        let mut sums = [[0; PANEL]; TASK_PANELS];
        for (token, y) in y.outer_iter_mut().enumerate() {
            simd::vector(
                self.kernel,
                order,
                panels,
                activations.block(token),
                &mut sums[..y.len().div_ceil(PANEL)],
            );
            self.finish(&sums, activations.scale(token), y);
        }
    }

    /// The same for blocks of tokens. `scratch` takes the unpacked codes.
    fn matrix(
        &self,
        panels: &[Line],
        activations: &TokenActivations,
        scratch: &mut Vec<Line>,
        mut y: ArrayViewMut2<f32>,
    ) {
        scratch.resize(panels.len() * 4, Line::ZERO);
        layout::unpack(panels, scratch);
        let panels = y.ncols().div_ceil(PANEL);
        let mut sums = [[0; PANEL]; TASK_PANELS * MAX_TOKENS];
        for (block, mut y) in y.axis_chunks_iter_mut(Axis(0), simd::tokens(self.kernel)).enumerate() {
            let sums = &mut sums[..panels * y.nrows()];
            simd::matrix(self.kernel, scratch, activations.block(block), y.nrows(), sums);
            let first = block * simd::tokens(self.kernel);
            for (token, (y, sums)) in y.outer_iter_mut().zip(sums.chunks_exact(panels)).enumerate() {
                self.finish(sums, activations.scale(first + token), y);
            }
        }
    }

    /// From the sums of codes times activations to the outputs of a token.
    fn finish(&self, sums: &[[i32; PANEL]], token: TokenScale, mut y: ArrayViewMut1<f32>) {
        let factor = self.scale / token.scale;
        let Some(y) = y.as_slice_mut() else { unreachable!("rows in standard layout") };
        // Codes are weights plus one, so the sum of the activations is in every sum of products.
        for (y, sum) in y.iter_mut().zip(sums.as_flattened()) {
            *y = (sum - token.sum) as f32 * factor;
        }
    }
}
