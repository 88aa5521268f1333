//! The weighted sum of rows of values.

use deltallm_core::{
    BLOCK_TOKENS,
    internal::{Int4Rows, Int8Rows, StoredRows},
};
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

use super::{
    ahead::{Ahead, rows_memory},
    decode_simd::{DecodeSimd, width},
    passes::{Pass, in_passes},
    rows::{Int4Kernel, Int8Kernel, VectorRow, VectorRows, scales_to_f32},
    scratch::KernelScratch,
};

/// `sums[head] += weights[head][i] * rows[selected[i]]` for all selected; `weights` is `[group, BLOCK_TOKENS]`, `sums`
/// `[group, channels]`. The memory of the rows `ahead` is asked for.
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
pub(crate) fn add_values(
    isa: Isa,
    rows: StoredRows,
    ahead: Option<StoredRows>,
    selected: &[u8],
    weights: &[f32],
    sums: &mut [f32],
    channels: usize,
    scratch: &mut KernelScratch,
) {
    let scales = &mut scratch.scales;
    let [ahead, _] = ahead.map_or([Ahead::default(); 2], |rows| rows_memory(rows, channels));
    match rows {
        StoredRows::F32(rows) => add_rows(isa, Weighted { rows, selected, ahead, weights, sums, channels }),
        StoredRows::F16(rows) => add_rows(isa, Weighted { rows, selected, ahead, weights, sums, channels }),
        StoredRows::Bf16(rows) => add_rows(isa, Weighted { rows, selected, ahead, weights, sums, channels }),
        StoredRows::Int8(Int8Rows { codes, scales: stored, .. }) => dispatch!(isa, simd => {
            let rows = Int8Kernel { codes, scales: scales_to_f32(simd, stored, scales) };
            let weighted = Weighted { rows, selected, ahead, weights, sums, channels };
            weigh(simd, weighted);
        }),
        StoredRows::Int4(Int4Rows { codes, scales: stored }) => dispatch!(isa, simd => {
            let rows = Int4Kernel { codes, scales: scales_to_f32(simd, stored, scales) };
            let weighted = Weighted { rows, selected, ahead, weights, sums, channels };
            weigh(simd, weighted);
        }),
    }
}

/// A function of its own for every form of rows, or one for all of them would take minutes to compile.
fn add_rows<R: VectorRows>(isa: Isa, weighted: Weighted<R>) {
    dispatch!(isa, simd => weigh(simd, weighted));
}

#[inline(always)]
fn weigh<S: DecodeSimd, R: VectorRows>(simd: S, mut weighted: Weighted<R>) {
    in_passes(simd, weighted.sums.len() / weighted.channels, &mut weighted);
}

/// `sums[head] += sum over i of weights[head * BLOCK_TOKENS + i] * rows[selected[i]]`.
pub(crate) struct Weighted<'a, R> {
    pub(crate) rows: R,
    pub(crate) selected: &'a [u8],
    /// Memory to ask for meanwhile.
    pub(crate) ahead: Ahead,
    /// `[heads, BLOCK_TOKENS]`, or from the weight of the first selected row on.
    pub(crate) weights: &'a [f32],
    /// `[heads, channels]`.
    pub(crate) sums: &'a mut [f32],
    /// A multiple of the vector length.
    pub(crate) channels: usize,
}

impl<S: DecodeSimd, R: VectorRows> Pass<S> for Weighted<'_, R> {
    /// Four vectors of channels at a time, or two where the registers hold no more sums.
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: S, head: usize) {
        let vectors = self.channels / width::<S>();
        let mut vector = 0;
        // The sums, the weights, a value, and what the rows need.
        let four = const { 4 * G + G + 1 + R::HELD <= S::REGISTERS };
        while four && vector + 4 <= vectors {
            self.panel::<S, G, 4>(simd, head, vector);
            vector += 4;
        }
        while !four && vector + 2 <= vectors {
            self.panel::<S, G, 2>(simd, head, vector);
            vector += 2;
        }
        while vector < vectors {
            self.panel::<S, G, 1>(simd, head, vector);
            vector += 1;
        }
    }
}

impl<R: VectorRows> Weighted<'_, R> {
    /// `G` heads by `N` vectors of channels, kept in registers over all selected rows.
    #[inline(always)]
    fn panel<S: DecodeSimd, const G: usize, const N: usize>(&mut self, simd: S, head: usize, first: usize) {
        // Loops, not closures: what is not inlined into this function is compiled without its instructions.
        let (rows, selected, channels) = (self.rows, self.selected, self.channels);
        let mut kept = [[S::f32s::splat(simd, 0.0); N]; G];
        let mut rows_of_weights = [&[][..]; G];
        for (i, (kept, row)) in kept.iter_mut().zip(&mut rows_of_weights).enumerate() {
            *row = &self.weights[(head + i) * BLOCK_TOKENS..][..selected.len()];
            let sums = &self.sums[(head + i) * channels + first * width::<S>()..][..N * width::<S>()];
            for (kept, sums) in kept.iter_mut().zip(sums.chunks_exact(width::<S>())) {
                *kept = S::f32s::from_slice(simd, sums);
            }
        }
        let mut ahead = std::mem::take(&mut self.ahead).steps(selected.len());
        for (i, index) in selected.iter().enumerate() {
            let row = rows.row(usize::from(*index), channels);
            ahead.prefetch();
            let mut weight = [S::f32s::splat(simd, 0.0); G];
            for (weight, row) in weight.iter_mut().zip(rows_of_weights) {
                *weight = S::f32s::splat(simd, row[i]);
            }
            for vector in 0..N {
                let value = row.vector(simd, first + vector);
                for (kept, weight) in kept.iter_mut().zip(weight) {
                    kept[vector] = value.mul_add(weight, kept[vector]);
                }
            }
        }
        for (i, kept) in kept.iter().enumerate() {
            let sums = &mut self.sums[(head + i) * channels + first * width::<S>()..][..N * width::<S>()];
            for (kept, sums) in kept.iter().zip(sums.chunks_exact_mut(width::<S>())) {
                kept.store_slice(sums);
            }
        }
    }
}
