//! One token: lines are read in packed form, four codes to a byte, and unpacked on the way.

use deltallm_simd::{fearless_simd::i32x16, weight_order::WeightOrder};

use super::layout::QUADS;
use crate::linear::kernels::{ByteProducts, Line, PANEL, Quad, rows_of};

/// [`scalar::vector`](super::scalar::vector).
#[inline(always)]
pub(super) fn multiply_token<K: PackedProducts>(
    kernel: K,
    order: WeightOrder,
    panels: &[Line],
    quads: &[Quad],
    sums: &mut [[i32; PANEL]],
) {
    let quads = quads.as_chunks().0;
    for (panel, sums) in panels.chunks_exact(quads.len()).zip(sums) {
        *sums = rows_of(kernel.panel_sums(order, panel, quads));
    }
}

/// Instructions that multiply packed lines.
pub(super) trait PackedProducts: ByteProducts {
    /// The sums of a panel's rows.
    fn panel_sums(self, order: WeightOrder, panel: &[Line], quads: &[[Quad; QUADS]]) -> i32x16<Self::Simd>;
}
