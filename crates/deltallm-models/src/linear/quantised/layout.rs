//! How quantised weights lie in memory: panels of 16 rows, cut into blocks of 32 columns (16 of `Q6_K`), one scale for each row
//! of a block.
//!
//! A weight is `scale * (code - offset)`, or `scale * code + minimum` for types with minima. Codes are not negative. Byte
//! `4 r + b` of a line belongs to row `r`, as in [`ternary`](crate::linear::ternary); what it holds of block columns:
//!
//! ```text
//! low 4 bits       line i of 4 (2 of Q6_K): column 8 i + b in the low half, column 8 i + 4 + b in the high half
//! what is left     of 5 bits, one line: of column 4 q + b in bit q
//!                  of 6 bits, one line: of column 4 q + b in bits 2 q and 2 q + 1
//! codes of 8 bits  line i of 8: column 4 i + b
//! ```
//!
//! Beside the lines lie the factors, 16 numbers of 16 bits each, one a row: for every block of a panel the scales and, if the
//! type has them, the minima.
//!
//! | type | code | offset | bits a weight, here | in the file |
//! |---|---|---|---|---|
//! | `Q4_0` | 4 bits | 8 | 4.5 | 4.5 |
//! | `Q4_1` | 4 bits | minima | 5 | 5 |
//! | `Q4_K` | 4 bits | minima | 5 | 4.5 |
//! | `Q5_0` | 5 bits | 16 | 5.5 | 5.5 |
//! | `Q5_1` | 5 bits | minima | 6 | 6 |
//! | `Q5_K` | 5 bits | minima | 6 | 5.5 |
//! | `Q6_K` | 6 bits | 32 | 7 | 6.6 |
//! | `Q8_0` | 8 bits | 128 | 8.5 | 8.5 |
//!
//! Factors of K-quants are products of a 16-bit number and a small integer, rounded to 16 bits again: to 11 bits of precision
//! (a share of at most 2^-11), or to multiples of 2^-24 where they are below 2^-14. All others are those of the file.
//!
//! Rows are padded to a multiple of 16 with scales of 0. Columns are whole blocks.

use half::f16;
use rayon::prelude::*;

use super::QuantisedError;
use crate::linear::kernels::{LargePages, Line, PANEL, RowFactors};
use crate::quant::{Factors, TensorType, codes};

/// What is different between types: the bits of a code, and whether blocks have minima.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Four,
    FourMinima,
    Five,
    FiveMinima,
    Six,
    Eight,
}

impl Form {
    pub(super) fn of(ty: TensorType) -> Option<Self> {
        Some(match ty {
            TensorType::Q4_0 => Self::Four,
            TensorType::Q4_1 | TensorType::Q4_K => Self::FourMinima,
            TensorType::Q5_0 => Self::Five,
            TensorType::Q5_1 | TensorType::Q5_K => Self::FiveMinima,
            TensorType::Q6_K => Self::Six,
            TensorType::Q8_0 => Self::Eight,
            _ => return None,
        })
    }

    /// Columns of a block.
    pub(super) fn block(self) -> usize {
        if self == Self::Six { 16 } else { 32 }
    }

    /// Bits of a code.
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::Four | Self::FourMinima => 4,
            Self::Five | Self::FiveMinima => 5,
            Self::Six => 6,
            Self::Eight => 8,
        }
    }

    /// Whether blocks have minima.
    pub(super) fn minima(self) -> bool {
        matches!(self, Self::FourMinima | Self::FiveMinima)
    }

    /// What is taken from a code before it is scaled.
    pub(super) fn offset(self) -> u8 {
        if self.minima() { 0 } else { 1 << (self.bits() - 1) }
    }

    /// Lines of a block.
    pub(super) fn lines(self) -> usize {
        self.block() * self.bits() as usize / 32
    }

    /// The code of a row and a column of a block, from its lines.
    pub(super) fn code(self, lines: &[Line], row: usize, column: usize) -> u8 {
        let (quad, byte) = (column / 4, 4 * row + column % 4);
        if self.bits() == 8 {
            return lines[quad].0[byte];
        }
        let low = lines[quad / 2].0[byte] >> (4 * (quad % 2)) & 0xf;
        let Some(above) = lines.get(self.block() / 8) else { return low };
        let bits = self.bits() as usize - 4;
        low | (above.0[byte] >> (bits * quad) & ((1 << bits) - 1)) << 4
    }

    /// Factors of a block, each for 16 rows.
    pub(super) fn factors(self) -> usize {
        1 + usize::from(self.minima())
    }
}

/// 16 rows of weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel<'a> {
    pub(super) lines: &'a [Line],
    pub(super) factors: &'a [RowFactors],
}

/// A matrix of quantised weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QuantisedPanels {
    form: Form,
    rows: usize,
    columns: usize,
    lines: LargePages<Line>,
    factors: LargePages<RowFactors>,
}

impl QuantisedPanels {
    /// Packs rows of blocks of type `ty`, of which `form` is the form. The sizes have been checked, apart from those of what
    /// `row_bytes` answers.
    pub(super) fn pack<'a>(
        ty: TensorType,
        form: Form,
        rows: usize,
        columns: usize,
        row_bytes: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self, QuantisedError> {
        let blocks = columns / form.block();
        let panels = rows.div_ceil(PANEL);
        let (lines_of, factors_of) = (blocks * form.lines(), blocks * form.factors());
        let expected = (columns / ty.block_elements()).saturating_mul(ty.block_bytes());
        // A row that is there bounds the columns, before memory is asked for.
        let got = row_bytes(0).len();
        if got != expected {
            return Err(QuantisedError::RowBytes { row: 0, expected, got });
        }
        let memory = || QuantisedError::Memory { rows, columns };
        let lines = panels.checked_mul(lines_of).and_then(LargePages::<Line>::zeros);
        let mut lines = lines.ok_or_else(memory)?;
        let factors = panels.checked_mul(factors_of).and_then(LargePages::<RowFactors>::zeros);
        let mut factors = factors.ok_or_else(memory)?;
        lines
            .par_chunks_exact_mut(lines_of)
            .zip(factors.par_chunks_exact_mut(factors_of))
            .enumerate()
            .try_for_each_init(
                || (vec![0; PANEL * columns], vec![Factors::default(); blocks]),
                |(codes, row_factors), (panel, (lines, factors))| {
                    codes.fill(0);
                    for (r, codes) in codes.chunks_exact_mut(columns).enumerate() {
                        let row = panel * PANEL + r;
                        if row >= rows {
                            break;
                        }
                        let bytes = row_bytes(row);
                        if bytes.len() != expected {
                            return Err(QuantisedError::RowBytes { row, expected, got: bytes.len() });
                        }
                        codes::unpack(ty, bytes, codes, row_factors);
                        for (block, from) in row_factors.iter().enumerate() {
                            let to = &mut factors[block * form.factors()..][..form.factors()];
                            for (to, from) in to.iter_mut().zip([from.scale, from.minimum]) {
                                to.0[r] = narrow(from, row, block * form.block())?;
                            }
                        }
                    }
                    for (block, lines) in lines.chunks_exact_mut(form.lines()).enumerate() {
                        for (row, codes) in codes.chunks_exact(columns).enumerate() {
                            pack(form, &codes[block * form.block()..][..form.block()], row, lines);
                        }
                    }
                    Ok(())
                },
            )?;
        Ok(Self { form, rows, columns, lines, factors })
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// How many panels there are.
    pub(super) fn count(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.factors)
    }

    /// Panel `index`.
    pub(super) fn panel(&self, index: usize) -> Panel<'_> {
        let blocks = self.columns / self.form.block();
        let (lines, factors) = (blocks * self.form.lines(), blocks * self.form.factors());
        Panel {
            lines: &self.lines[index * lines..][..lines],
            factors: &self.factors[index * factors..][..factors],
        }
    }

    /// The weights of a row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let (form, panel, r) = (self.form, self.panel(row / PANEL), row % PANEL);
        let blocks = panel.lines.chunks_exact(form.lines()).zip(panel.factors.chunks_exact(form.factors()));
        for ((lines, factors), out) in blocks.zip(out.chunks_exact_mut(form.block())) {
            let scale = factors[0].0[r].to_f32();
            for (column, out) in out.iter_mut().enumerate() {
                let code = form.code(lines, r, column);
                *out = match factors.get(1) {
                    Some(minima) => scale * f32::from(code) + minima.0[r].to_f32(),
                    None => scale * (f32::from(code) - f32::from(form.offset())),
                };
            }
        }
    }
}

/// A factor in 16 bits.
fn narrow(factor: f32, row: usize, column: usize) -> Result<f16, QuantisedError> {
    if !factor.is_finite() {
        return Err(QuantisedError::NonFinite { row, column, got: factor });
    }
    let narrow = f16::from_f32(factor);
    if narrow.is_finite() { Ok(narrow) } else { Err(QuantisedError::ScaleRange { row, column, got: factor }) }
}

/// Puts a row's codes of a block into its lines, which are zero there.
#[inline(always)]
fn pack(form: Form, codes: &[u8], row: usize, lines: &mut [Line]) {
    let (pairs, bits) = (form.block() / 8, form.bits());
    let mut add = |line: usize, bytes: u32| {
        let place = &mut lines[line].0.as_chunks_mut::<4>().0[row];
        *place = (u32::from_le_bytes(*place) | bytes).to_le_bytes();
    };
    for (quad, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
        let codes = u32::from_le_bytes(*codes);
        if bits == 8 {
            add(quad, codes);
            continue;
        }
        add(quad / 2, (codes & 0x0f0f_0f0f) << (4 * (quad as u32 % 2)));
        if bits > 4 {
            add(pairs, (codes >> 4 & 0x0f0f_0f0f) << ((bits - 4) * quad as u32));
        }
    }
}
