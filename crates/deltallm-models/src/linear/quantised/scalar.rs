//! What every kernel computes, in plain loops.

use super::{
    activations::Batch,
    layout::{Form, Panel},
};
use crate::linear::kernels::PANEL;

/// Adds to `sums[token][row]`, block by block,
///
/// ```text
/// (sum of products of codes - offset * sum of the activations' codes) * (scale of the weights * scale of the activations)
/// minimum * (scale of the activations * sum of their codes)
/// ```
/// the second where there are minima. Sums of products are integers; each line is a fused multiply-add.
pub(super) fn multiply(form: Form, panel: &Panel<'_>, batch: Batch<'_>, sums: &mut [[f32; PANEL]]) {
    for (token, sums) in sums.iter_mut().enumerate() {
        let blocks = panel.lines.chunks_exact(form.lines()).zip(panel.factors.chunks_exact(form.factors()));
        for (block, (lines, factors)) in blocks.enumerate() {
            let place = block * batch.tokens + token;
            let scales = batch.scales[place];
            let quads = &batch.codes[place * (form.block() / 4)..][..form.block() / 4];
            for (r, sum) in sums.iter_mut().enumerate() {
                let mut products = scales.start;
                for (index, quad) in quads.iter().enumerate() {
                    for (b, activation) in quad.iter().enumerate() {
                        let code = form.code(lines, r, 4 * index + b);
                        products += i32::from(code) * i32::from(*activation);
                    }
                }
                *sum = (products as f32).mul_add(factors[0].0[r].to_f32() * scales.scale, *sum);
                if let Some(minima) = factors.get(1) {
                    *sum = minima.0[r].to_f32().mul_add(scales.sum, *sum);
                }
            }
        }
    }
}
