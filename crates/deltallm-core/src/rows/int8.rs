//! Rows of 8-bit codes.

use std::ops::Range;

use deltallm_simd::{Isa, dispatch};
use half::f16;

use crate::quantise::{GROUP, extremes, groups, inverse, nearest, round_up};

/// Rows of 8-bit codes: a number is `code * scale`, with the scale of its group of [`GROUP`] channels, plus the center of its channel.
#[derive(Debug, Clone, Copy)]
pub struct Int8Rows<'a> {
    /// `[rows, channels]`.
    pub codes: &'a [i8],
    /// `[rows, groups]`.
    pub scales: &'a [f16],
    /// What all rows are held relative to, `[channels]`; empty for nothing.
    pub center: &'a [f32],
}

/// A page of them.
#[derive(Debug)]
pub(crate) struct Int8Page {
    codes: Vec<i8>,
    scales: Vec<f16>,
}

impl Int8Page {
    /// Bytes of a row.
    pub(crate) fn row_bytes(channels: usize) -> usize {
        channels.saturating_add(groups(channels).saturating_mul(size_of::<f16>()))
    }

    /// Room for so many rows.
    pub(crate) fn with_capacity(rows: usize, channels: usize) -> Self {
        Self {
            codes: Vec::with_capacity(rows * channels),
            scales: Vec::with_capacity(rows * groups(channels)),
        }
    }

    /// Appends a row.
    pub(crate) fn push(&mut self, row: &[f32], isa: Isa) {
        let (code, scale) = (self.codes.len(), self.scales.len());
        self.codes.resize(code + row.len(), 0);
        self.scales.resize(scale + groups(row.len()), f16::ZERO);
        let (codes, scales) = (&mut self.codes[code..], &mut self.scales[scale..]);
        dispatch!(isa, _simd => to_int8(row, codes, scales));
    }

    /// Keeps the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize, channels: usize) {
        self.codes.truncate(rows * channels);
        self.scales.truncate(rows * groups(channels));
    }

    /// Appends rows to `out` as f32.
    pub(crate) fn read(&self, rows: Range<usize>, channels: usize, out: &mut Vec<f32>) {
        let Int8Rows { codes, scales, .. } = self.view(rows, channels);
        from_int8(codes, scales, channels, out);
    }

    /// The rows as they are held, without a center.
    pub(crate) fn view(&self, rows: Range<usize>, channels: usize) -> Int8Rows<'_> {
        let of = |width: usize| rows.start * width..rows.end * width;
        Int8Rows { codes: &self.codes[of(channels)], scales: &self.scales[of(groups(channels))], center: &[] }
    }
}

/// Rounds one row to 8 bits: per group the scale is the largest magnitude over 127 (GGUF's `q8_0`). No number is off by
/// more than half its scale.
///
/// `codes` is `[channels]`, `scales` `[groups]`.
#[inline(always)]
fn to_int8(row: &[f32], codes: &mut [i8], scales: &mut [f16]) {
    for ((row, codes), stored) in row.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(scales) {
        let (low, high) = extremes(row);
        *stored = round_up(high.max(-low) / 127.0);
        let inverse = inverse(stored.to_f32());
        for (x, code) in row.iter().zip(codes) {
            *code = nearest(x * inverse) as i8;
        }
    }
}

/// Appends rows of 8-bit codes, `[tokens, channels]`, to `rows` as f32.
fn from_int8(codes: &[i8], scales: &[f16], channels: usize, rows: &mut Vec<f32>) {
    for (codes, scales) in codes.chunks_exact(channels).zip(scales.chunks_exact(groups(channels))) {
        for (codes, scale) in codes.chunks(GROUP).zip(scales) {
            let scale = scale.to_f32();
            rows.extend(codes.iter().map(|code| f32::from(*code) * scale));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::quantise::tests::row;

    proptest! {
        #[test]
        fn eight_bits_are_off_by_half_a_scale_at_most(row in row()) {
            let channels = row.len();
            let (mut codes, mut scales) = (vec![0; channels], vec![f16::ZERO; groups(channels)]);
            to_int8(&row, &mut codes, &mut scales);
            let mut back = Vec::new();
            from_int8(&codes, &scales, channels, &mut back);
            prop_assert_eq!(back.len(), channels);
            prop_assert!(codes.iter().all(|code| *code != i8::MIN));
            for (j, (x, y)) in row.iter().zip(&back).enumerate() {
                let scale = scales[j / GROUP].to_f32();
                prop_assert!((x - y).abs() <= 0.5001 * scale, "{x} {y} {scale}");
                let largest = row[j / GROUP * GROUP..channels.min((j / GROUP + 1) * GROUP)].iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                prop_assert!(scale <= largest / 127.0 * 1.001 + 6e-8);
            }
        }
    }
}
