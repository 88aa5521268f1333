//! Rows of 8-bit codes.

use std::ops::Range;

use deltallm_simd::{Isa, dispatch};
use half::f16;

use super::coded_page::Widths;
use crate::quantise::{GROUP, extremes, groups, inverse, nearest, round_up, scale_bytes};

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

impl<'a> Int8Rows<'a> {
    /// Rows of a page that has room for `tokens`, without a center.
    pub(super) fn of_page(page: &'a [u8], tokens: usize, channels: usize, rows: Range<usize>) -> Self {
        let (codes, scales) = widths(channels).split(page, tokens, rows);
        Self { codes: bytemuck::cast_slice(codes), scales, center: &[] }
    }

    /// Appends rows to `out` as f32, without a center.
    pub(super) fn gather(&self, channels: usize, out: &mut Vec<f32>) {
        from_int8(self.codes, self.scales, channels, out);
    }
}

/// Bytes of a row.
pub(super) fn widths(channels: usize) -> Widths {
    Widths { codes: channels, scales: scale_bytes(channels) }
}

/// Writes row `at` of a page that has room for `tokens`.
pub(super) fn write(page: &mut [u8], tokens: usize, at: usize, row: &[f32]) {
    let (codes, scales) = widths(row.len()).split_mut(page, tokens, at);
    let codes = bytemuck::cast_slice_mut(codes);
    dispatch!(Isa::best(), _simd => to_int8(row, codes, scales));
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
            for isa in Isa::available() {
                let (mut again, mut again_scales) = (vec![0; channels], vec![f16::ZERO; groups(channels)]);
                dispatch!(isa, _simd => to_int8(&row, &mut again, &mut again_scales));
                prop_assert_eq!((&again, &again_scales), (&codes, &scales), "{}", isa);
            }
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
