//! Which instructions multiply. All compute what [`scalar`] says, in the same order, and get the same bits: sums of products
//! are integers, and everything that is rounded is one lane's own.

use deltallm_simd::{dot::ByteKernel, fearless_simd::prelude::*, weight_order::WeightOrder};

use super::{
    activations::Batch,
    layout::{Form, Panel},
    scalar,
    tile::multiply_panels,
};
use crate::linear::kernels::PANEL;

/// The most panels of a call of a kernel: for many tokens those that it multiplies side by side, for one token enough for the
/// call itself not to count.
pub(super) const MOST_PANELS: usize = 8;

/// How many panels [`multiply`] takes at a time.
pub(super) fn panels(kernel: ByteKernel, tokens: usize) -> usize {
    match kernel {
        _ if tokens == 1 => MOST_PANELS,
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx512(_) => 2,
        _ => 1,
    }
}

/// `sums[token][panel][row] += sum over columns of weight * activation`, for at most [`panels`] panels and the tokens of a batch that
/// this kernel has quantised. Weights are asked for in that order.
pub(super) fn multiply(
    kernel: ByteKernel,
    order: WeightOrder,
    form: Form,
    panels: &[Panel<'_>],
    batch: Batch<'_>,
    sums: &mut [[f32; PANEL]],
) {
    let blocks = batch.scales.len() / batch.tokens;
    assert!(
        (1..=self::panels(kernel, batch.tokens)).contains(&panels.len())
            && sums.len() == batch.tokens * panels.len()
    );
    assert_eq!(
        (batch.scales.len(), batch.codes.len()),
        (blocks * batch.tokens, batch.scales.len() * form.block() / 4)
    );
    for panel in panels {
        assert_eq!(
            (panel.lines.len(), panel.factors.len()),
            (blocks * form.lines(), blocks * form.factors())
        );
    }
    #[cfg(target_arch = "x86_64")]
    if let (ByteKernel::Avx512(avx512), [first, second], 2..) = (kernel, panels, batch.tokens) {
        // Two panels' codes of a block are 16 registers, four tokens' sums 8.
        return avx512.vectorize(
            #[inline(always)]
            || multiply_panels::<_, 2, 4>(avx512, order, form, &[*first, *second], batch, sums),
        );
    }
    // One panel, or the sums of one token: either way a panel's sums follow each other.
    for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(batch.tokens)) {
        let panel = std::array::from_ref(panel);
        match kernel {
            ByteKernel::Scalar => scalar::multiply(form, &panel[0], batch, sums),
            #[cfg(target_arch = "x86_64")]
            ByteKernel::Avx2(avx2) => avx2.vectorize(
                #[inline(always)]
                || multiply_panels::<_, 1, 4>(avx2, order, form, panel, batch, sums),
            ),
            #[cfg(target_arch = "x86_64")]
            ByteKernel::AvxVnni(avx_vnni) => avx_vnni.vectorize(
                #[inline(always)]
                || multiply_panels::<_, 1, 6>(avx_vnni, order, form, panel, batch, sums),
            ),
            #[cfg(target_arch = "x86_64")]
            ByteKernel::Avx512(avx512) => avx512.vectorize(
                #[inline(always)]
                || multiply_panels::<_, 1, 4>(avx512, order, form, panel, batch, sums),
            ),
            #[cfg(target_arch = "aarch64")]
            ByteKernel::Neon(neon) => neon.vectorize(
                #[inline(always)]
                || multiply_panels::<_, 1, 2>(neon, order, form, panel, batch, sums),
            ),
            #[cfg(target_arch = "aarch64")]
            ByteKernel::DotProd(dot_prod) => dot_prod.vectorize(
                #[inline(always)]
                || multiply_panels::<_, 1, 4>(dot_prod, order, form, panel, batch, sums),
            ),
        }
    }
}
