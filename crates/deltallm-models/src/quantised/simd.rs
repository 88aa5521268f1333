//! Which instructions multiply. All compute what [`scalar`] says, in the same order, and get the same bits: sums of products
//! are integers, and everything that is rounded is one lane's own.

#[cfg(target_arch = "x86_64")]
mod avx;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;

use super::{
    MOST_PANELS,
    activations::{self, Batch, BlockScale},
    layout::{Form, Panel},
    scalar,
};
use crate::kernels::{ByteKernel, Instructions, PANEL, Quad};

impl ByteKernel {
    /// Rounds the tokens of a batch to 8 bits, block by block; see [`activations::quantise_batch`].
    pub(super) fn quantise_batch(
        self,
        form: Form,
        x: &[f32],
        blocks: usize,
        codes: &mut [Quad],
        scales: &mut [BlockScale],
    ) {
        let offset = i32::from(form.offset) - self.shift(form);
        let quantise = match (self.instructions(), form.block) {
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2 | Instructions::AvxVnni, 16) => avx::quantise_batch::<16>,
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx2 | Instructions::AvxVnni, _) => avx::quantise_batch::<32>,
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512Vnni, 16) => avx512::quantise_batch::<16>,
            #[cfg(target_arch = "x86_64")]
            (Instructions::Avx512Vnni, _) => avx512::quantise_batch::<32>,
            (_, 16) => activations::quantise_batch::<16>,
            _ => activations::quantise_batch::<32>,
        };
        quantise(offset, x, blocks, codes, scales);
    }

    /// What the kernel itself takes from codes, to multiply signed bytes.
    fn shift(self, form: Form) -> i32 {
        match self.instructions() {
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2 if form.wide => 128,
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon | Instructions::NeonDot if form.wide => 128,
            _ => {
                let _ = form;
                0
            }
        }
    }

    /// How many panels [`multiply`](Self::multiply) takes at a time.
    pub(super) fn panels(self, tokens: usize) -> usize {
        match self.instructions() {
            _ if tokens == 1 => MOST_PANELS,
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512Vnni => 2,
            _ => 1,
        }
    }

    /// `sums[token][panel][row] += sum over columns of weight * activation`, for at most [`panels`](Self::panels) panels and the
    /// tokens of a batch that this kernel has quantised.
    pub(super) fn multiply(
        self,
        form: Form,
        panels: &[Panel<'_>],
        batch: Batch<'_>,
        sums: &mut [[f32; PANEL]],
    ) {
        let blocks = batch.scales.len() / batch.tokens;
        assert!(
            (1..=self.panels(batch.tokens)).contains(&panels.len())
                && sums.len() == batch.tokens * panels.len()
        );
        assert_eq!(
            (batch.scales.len(), batch.codes.len()),
            (blocks * batch.tokens, batch.scales.len() * form.block / 4)
        );
        for panel in panels {
            assert_eq!(
                (panel.lines.len(), panel.factors.len()),
                (blocks * form.lines(), blocks * form.factors())
            );
        }
        #[cfg(target_arch = "x86_64")]
        if let (Instructions::Avx512Vnni, [first, second], 2..) = (self.instructions(), panels, batch.tokens)
        {
            return avx512::multiply(form, &[*first, *second], batch, sums);
        }
        // One panel, or the sums of one token: either way a panel's sums follow each other.
        for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(batch.tokens)) {
            match self.instructions() {
                Instructions::Scalar => scalar::multiply(form, panel, batch, sums),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => avx::multiply_avx2(form, panel, batch, sums),
                #[cfg(target_arch = "x86_64")]
                Instructions::AvxVnni => avx::multiply_vnni(form, panel, batch, sums),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512Vnni => avx512::multiply(form, &[*panel], batch, sums),
                #[cfg(target_arch = "aarch64")]
                Instructions::Neon => neon::multiply_neon(form, panel, batch, sums),
                #[cfg(target_arch = "aarch64")]
                Instructions::NeonDot => neon::multiply_dot(form, panel, batch, sums),
            }
        }
    }
}
