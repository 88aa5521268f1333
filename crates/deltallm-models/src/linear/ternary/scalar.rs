//! What every kernel computes, in plain loops.

use super::layout::QUADS;
use crate::linear::kernels::{Line, PANEL, Quad};

/// `sums[panel][row] = sum over columns of code * activation`.
pub(super) fn vector(panels: &[Line], quads: &[Quad], sums: &mut [[i32; PANEL]]) {
    for (panel, sums) in panels.chunks_exact(quads.len() / QUADS).zip(sums) {
        sums.fill(0);
        for (line, quads) in panel.iter().zip(quads.chunks_exact(QUADS)) {
            for (i, quad) in quads.iter().enumerate() {
                let codes = Line(line.0.map(|byte| (byte >> (2 * i)) & 3));
                add_products(&codes, *quad, sums);
            }
        }
    }
}

/// `sums[token][panel][row]`: the same for several tokens, `quads` being `[quads, tokens]`, with codes that are unpacked.
pub(super) fn matrix(codes: &[Line], quads: &[Quad], tokens: usize, sums: &mut [[i32; PANEL]]) {
    let panels = sums.len() / tokens;
    for (token, sums) in sums.chunks_exact_mut(panels).enumerate() {
        for (codes, sums) in codes.chunks_exact(codes.len() / panels).zip(sums) {
            sums.fill(0);
            for (codes, quads) in codes.iter().zip(quads.chunks_exact(tokens)) {
                add_products(codes, quads[token], sums);
            }
        }
    }
}

/// Adds the products of four columns.
fn add_products(codes: &Line, quad: Quad, sums: &mut [i32; PANEL]) {
    for (codes, sum) in codes.0.chunks_exact(4).zip(sums) {
        for (code, activation) in codes.iter().zip(quad) {
            *sum += i32::from(*code) * i32::from(activation);
        }
    }
}
