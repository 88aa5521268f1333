//! The linear layer of quantised models: weights as their file has them, activations rounded to 8 bits.
//!
//! Reading order: [`layout`] (how weights lie in memory), [`activations`] (how a token becomes 8-bit numbers), [`scalar`] (what
//! is computed, in plain loops), then [`simd`] (which instructions do it) and [`tile`] (the loops around them).

mod activations;
mod error;
mod layout;
mod scalar;
mod simd;
#[cfg(test)]
mod tests;
mod tile;

use deltallm_simd::{
    Isa,
    dot::ByteKernel,
    tuning::{LEAST_WORK, QUANTISED_BATCH as BATCH},
    weight_order::WeightOrder,
};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

pub use error::QuantisedError;

pub(crate) use activations::BlockActivations;

use layout::{Form, Panel, QuantisedPanels};
use simd::MOST_PANELS;

use crate::linear::error::LinearError;
use crate::linear::inputs::{Inputs, Rounded};
use crate::linear::kernels::{PANEL, for_each_task, prefetch_outputs};
use crate::quant::TensorType;

/// The most sums of a call.
const MOST_SUMS: usize = 2 * BATCH;

/// Sums of rows, each panel's in a cache line of its own: a vector that crosses lines costs two accesses.
#[repr(align(64))]
struct Sums<const N: usize>([[f32; PANEL]; N]);

/// A linear map whose weights stay quantised: blocks of 32 (or 16) codes of 4 to 8 bits with a scale, as GGUF files have them.
///
/// A token is rounded to 8 bits first, block by block: `s = max |x| / 127` and `q = round(x / s)`, half to even. Products of
/// codes are added up in integers, exactly, and multiplied with both scales; then blocks are added up in their order, with
/// fused multiply-adds. So the answer is the same, bit for bit, whatever the instructions and the number of threads. From the
/// product with the weights as numbers it is off by half a step of every block of the token at most: for output `i`
///
/// ```text
/// sum over blocks b of  max |x[b]| / 254  *  sum of |weights[i, b]|
/// ```
///
/// and what adding up in `f32` rounds off. Weights are those of the file, apart from the scales of K-quants, which are rounded
/// to 11 bits of precision.
///
/// ```
/// use deltallm_models::{QuantisedLinear, quant::TensorType};
/// use ndarray::Array2;
///
/// // One row of one block of Q8_0: the scale 0.5 as 16-bit float, then 32 codes.
/// let mut row = vec![0x00, 0x38];
/// row.extend((0..32).map(|code: i8| code.cast_unsigned()));
/// let linear = QuantisedLinear::from_rows(TensorType::Q8_0, 1, 32, |_| &row)?;
/// let y = linear.apply(&Array2::from_elem((1, 32), 127.0).view())?;
/// assert_eq!(y[[0, 0]], 127.0 * 0.5 * (0..32).sum::<i32>() as f32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QuantisedLinear {
    ty: TensorType,
    panels: QuantisedPanels,
    kernel: ByteKernel,
}

impl QuantisedLinear {
    /// Packs `rows` rows (output channels) of `columns` weights (input channels) of type `ty`: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
    /// Q4_K, Q5_K or Q6_K. `row_bytes(row)` answers the blocks of a row as they are in the file; it is called for every
    /// row, from the threads of the current rayon pool.
    ///
    /// The instructions are the fastest of this machine, until [`with_kernel`](Self::with_kernel) says otherwise.
    ///
    /// # Errors
    /// [`QuantisedError`] for another type, rows that are not whole blocks, sizes beyond the machine's memory, or scales that are
    /// not finite or, being products, beyond 16 bits.
    pub fn from_rows<'a>(
        ty: TensorType,
        rows: usize,
        columns: usize,
        row_bytes: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self, QuantisedError> {
        let form = Form::of(ty).ok_or(QuantisedError::Type { got: ty })?;
        let block = ty.block_elements();
        if rows == 0 || columns == 0 || !columns.is_multiple_of(block) {
            return Err(QuantisedError::Shape { block, rows, columns });
        }
        let kernel = ByteKernel::of(Isa::best());
        Ok(Self { ty, panels: QuantisedPanels::pack(ty, form, rows, columns, row_bytes)?, kernel })
    }

    /// Whether weights of that type can be packed.
    pub fn supports(ty: TensorType) -> bool {
        Form::of(ty).is_some()
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

    /// The type that the weights have in the file.
    pub fn tensor_type(&self) -> TensorType {
        self.ty
    }

    /// The instructions that multiply.
    pub fn kernel(&self) -> ByteKernel {
        self.kernel
    }

    /// Memory of the packed weights: 4.5 to 8.5 bits each, rows rounded up to a multiple of 16.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    /// Writes the weights of a row as numbers.
    ///
    /// # Errors
    /// [`LinearError::Row`] where there is no such row, [`LinearError::RowLength`] where `out` does not have
    /// [`columns`](Self::columns) elements.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), LinearError> {
        LinearError::check_row(self.rows(), row)?;
        LinearError::check_room(self.columns(), out.len())?;
        self.weights_of(row, out);
        Ok(())
    }

    /// [`row`](Self::row) of a row that exists.
    pub(crate) fn weights_of(&self, row: usize, out: &mut [f32]) {
        self.panels.row(row, out);
    }

    /// `x` `[tokens, columns]` to `[tokens, rows]`. Runs on the current rayon pool.
    ///
    /// A token with a number that is NaN or infinite gives a row of NaN; other tokens are not affected.
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
        inputs.rounded.quantised.round(self.kernel, &inputs.x, self.panels.form());
        let (activations, order) = (&inputs.rounded.quantised, inputs.rounded.order);
        let panels = self.task_panels(tokens);
        let work = panels * PANEL * columns * tokens;
        for_each_task(y, panels * PANEL, work, |(): &mut (), (index, y)| {
            self.task(index * panels, activations, order, y);
        });
    }

    /// Panels of a task: all of them on one thread, otherwise so many that there are as many tasks for every thread: some each
    /// where they are worth their hand-over, and one each for one token, whose weights are read best in long stretches.
    fn task_panels(&self, tokens: usize) -> usize {
        let (panels, threads) = (self.panels.count(), rayon::current_num_threads());
        if threads == 1 {
            return panels;
        }
        let worth = panels * PANEL * self.columns() * tokens / LEAST_WORK;
        let each = if tokens == 1 { 1 } else { 4 };
        let tasks = worth.min(each * threads) / threads * threads;
        let side_by_side = if tokens == 1 { 1 } else { simd::panels(self.kernel, tokens) };
        panels.div_ceil(tasks.max(1)).next_multiple_of(side_by_side)
    }

    /// The columns of `y` that belong to the panels from `first` on. Batch after batch, so that a batch's activations are read
    /// from the second cache for all panels, and its outputs stay there.
    fn task(
        &self,
        first: usize,
        activations: &BlockActivations,
        order: WeightOrder,
        mut y: ArrayViewMut2<f32>,
    ) {
        let (mut few, mut many);
        let sums: &mut [[f32; PANEL]] = if y.nrows() == 1 {
            few = Sums([[0.0; PANEL]; MOST_PANELS]);
            &mut few.0
        } else {
            many = Sums([[0.0; PANEL]; MOST_SUMS]);
            &mut many.0
        };
        let blocks = y.axis_chunks_iter_mut(Axis(0), BATCH);
        for (batch, mut y) in activations.batches().zip(blocks) {
            let side_by_side = simd::panels(self.kernel, batch.tokens);
            for (index, mut y) in y.axis_chunks_iter_mut(Axis(1), side_by_side * PANEL).enumerate() {
                let count = y.ncols().div_ceil(PANEL);
                let panel = |p: usize| self.panels.panel(first + index * side_by_side + p);
                let panels: [Panel<'_>; MOST_PANELS] = std::array::from_fn(|p| panel(p.min(count - 1)));
                prefetch_outputs(&y.view());
                let sums = &mut sums[..batch.tokens * count];
                sums.fill([0.0; PANEL]);
                simd::multiply(self.kernel, order, self.panels.form(), &panels[..count], batch, sums);
                for (mut y, sums) in y.outer_iter_mut().zip(sums.chunks_exact(count)) {
                    let Some(y) = y.as_slice_mut() else { unreachable!("rows in standard layout") };
                    let (whole, rest) = y.as_chunks_mut();
                    whole.iter_mut().zip(sums).for_each(|(y, sums)| *y = *sums);
                    rest.copy_from_slice(&sums.as_flattened()[whole.len() * PANEL..][..rest.len()]);
                }
            }
        }
    }
}
