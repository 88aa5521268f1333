//! How ternary weights lie in memory: panels of 16 rows, made of lines of 16 rows and 16 columns.
//!
//! A weight is held as its *code*, the weight plus one: 0, 1 or 2. Byte `4 r + b` of a line holds, in bits `2 i` and
//! `2 i + 1`, the code of row `r` and column `4 i + b`, where `r` is 0..16 and `i` and `b` are 0..4:
//!
//! ```text
//! byte        0        1        2        3        4  ..   63
//! row         0        0        0        0        1       15
//! bits 0-1    col 0    col 1    col 2    col 3    col 0   col 3
//! bits 2-3    col 4    col 5    col 6    col 7    col 4   col 7
//! bits 4-5    col 8    col 9    col 10   col 11   col 8   col 11
//! bits 6-7    col 12   col 13   col 14   col 15   col 12  col 15
//! ```
//!
//! So a shift and a mask make of a line, whatever the width of vectors, rows side by side with four columns each: the form
//! that dot products of 8-bit integers want, with the sum of a row in a lane of 32 bits and nothing to be added across
//! lanes. A line is a cache line. A panel's lines follow each other in the order of columns.
//!
//! Unpacked, a line is of 16 rows and 4 columns, a code per byte. Rows and columns are padded to multiples of 16 with weights of 0; activations are padded with 0 as well.

use rayon::prelude::*;

use super::TernaryError;
use crate::linear::kernels::{LargePages, Line, PANEL, bits};

/// Columns of a line.
pub(super) const COLUMNS: usize = 16;

/// Quads of activations that meet a line.
pub(super) const QUADS: usize = COLUMNS / 4;

/// A matrix of ternary weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TernaryPanels {
    rows: usize,
    columns: usize,
    lines: LargePages<Line>,
}

impl TernaryPanels {
    /// Packs the rows that `fill` writes.
    pub(super) fn pack<E: From<TernaryError> + Send>(
        rows: usize,
        columns: usize,
        fill: impl Fn(usize, &mut [i8]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let per_panel = columns.div_ceil(COLUMNS);
        let lines = rows.div_ceil(PANEL).checked_mul(per_panel).and_then(LargePages::<Line>::zeros);
        let mut lines = lines.ok_or(TernaryError::Memory { rows, columns })?;
        let padded = per_panel * COLUMNS;
        lines.par_chunks_exact_mut(per_panel).enumerate().try_for_each_init(
            || vec![0; PANEL * padded],
            |codes, (panel, lines)| {
                for (r, codes) in codes.chunks_exact_mut(padded).enumerate() {
                    let row = panel * PANEL + r;
                    codes.fill(0);
                    if row < rows {
                        fill(row, &mut codes[..columns])?;
                    }
                    encode(row, codes)?;
                }
                for (group, line) in lines.iter_mut().enumerate() {
                    *line = pack_line(codes, padded, group * COLUMNS);
                }
                Ok::<_, E>(())
            },
        )?;
        Ok(Self { rows, columns, lines })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Quads of a row of activations, with the padding.
    pub(super) fn quads(&self) -> usize {
        self.columns.div_ceil(COLUMNS) * QUADS
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }

    /// The lines of `count` panels from `first` on, or of those that are left.
    pub(super) fn panels(&self, first: usize, count: usize) -> &[Line] {
        let per_panel = self.columns.div_ceil(COLUMNS);
        let end = self.lines.len().min((first + count) * per_panel);
        &self.lines[first * per_panel..end]
    }

    /// The weights of a row.
    pub(super) fn row(&self, row: usize, out: &mut [i8]) {
        let r = row % PANEL;
        for (line, out) in self.panels(row / PANEL, 1).iter().zip(out.chunks_mut(COLUMNS)) {
            for (column, out) in out.iter_mut().enumerate() {
                let (i, b) = (column / 4, column % 4);
                *out = ((line.0[4 * r + b] >> (2 * i)) & 3) as i8 - 1;
            }
        }
    }
}

/// Weights become codes, unless they are not ternary.
fn encode<E: From<TernaryError>>(row: usize, weights: &mut [i8]) -> Result<(), E> {
    // Without an early exit this is a few vector instructions a row.
    let mut ternary = true;
    for weight in weights.iter_mut() {
        *weight = weight.wrapping_add(1);
        ternary &= (0..=2).contains(weight);
    }
    if ternary {
        return Ok(());
    }
    let column = weights.iter().position(|code| !(0..=2).contains(code)).unwrap_or_default();
    Err(TernaryError::Weight { row, column, got: weights[column].wrapping_sub(1) }.into())
}

/// The line of columns `column..column + 16` of 16 rows of codes that are `stride` apart.
#[inline(always)]
fn pack_line(codes: &[i8], stride: usize, column: usize) -> Line {
    let mut line = [0; 64];
    for (r, bytes) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let quads = codes[r * stride + column..][..COLUMNS].as_chunks::<4>().0;
        // Codes have two bits, so no byte is shifted into the next.
        *bytes = (0..4).fold(0, |all, i| all | bits(quads[i]) << (2 * i)).to_ne_bytes();
    }
    Line(line)
}

/// Writes the codes of `lines` a byte each: four lines for one, each of 16 rows and 4 columns, in the order of columns.
#[inline(always)]
pub(super) fn unpack(lines: &[Line], codes: &mut [Line]) {
    for (line, codes) in lines.iter().zip(codes.as_chunks_mut::<4>().0) {
        for (i, codes) in codes.iter_mut().enumerate() {
            // Eight bytes at a time: bits that a shift carries into the next byte are masked.
            for (from, to) in line.0.as_chunks::<8>().0.iter().zip(codes.0.as_chunks_mut::<8>().0) {
                *to = ((u64::from_ne_bytes(*from) >> (2 * i)) & 0x0303_0303_0303_0303).to_ne_bytes();
            }
        }
    }
}
