//! Rows of 4-bit codes.

use std::ops::Range;

use deltallm_simd::{Isa, dispatch};
use half::f16;

use super::coded_page::Widths;
use crate::quantise::{GROUP, extremes, groups, inverse, nearest, round_up, scale_bytes};

/// Rows of 4-bit codes: a number is `(code - 8) * scale`, with the scale of its group of [`GROUP`] channels; scales may be
/// negative. Byte `b` of a whole group holds channel `b` in its low half and channel `16 + b` in its high half; in a
/// shorter last group of `g` channels it is channel `ceil(g / 2) + b` that stands in the high half.
#[derive(Debug, Clone, Copy)]
pub struct Int4Rows<'a> {
    /// `[rows, bytes]`: half the channels, each group rounded up.
    pub codes: &'a [u8],
    /// `[rows, groups]`.
    pub scales: &'a [f16],
}

impl<'a> Int4Rows<'a> {
    /// Rows of a page that has room for `tokens`.
    pub(super) fn of_page(page: &'a [u8], tokens: usize, channels: usize, rows: Range<usize>) -> Self {
        let (codes, scales) = widths(channels).split(page, tokens, rows);
        Self { codes, scales }
    }

    /// Appends rows to `out` as f32.
    pub(super) fn gather(&self, channels: usize, out: &mut Vec<f32>) {
        from_int4(self.codes, self.scales, channels, out);
    }
}

/// Bytes of a row.
pub(super) fn widths(channels: usize) -> Widths {
    Widths { codes: nibble_bytes(channels), scales: scale_bytes(channels) }
}

/// Writes row `at` of a page that has room for `tokens`.
pub(super) fn write(page: &mut [u8], tokens: usize, at: usize, row: &[f32]) {
    let (codes, scales) = widths(row.len()).split_mut(page, tokens, at);
    dispatch!(Isa::best(), _simd => to_int4(row, codes, scales));
}

/// Bytes of a row of 4-bit codes: two channels of the same group a byte.
fn nibble_bytes(channels: usize) -> usize {
    channels / GROUP * (GROUP / 2) + (channels % GROUP).div_ceil(2)
}

/// Rounds one row to 4 bits: per group the scale is the number of largest magnitude over -8 (GGUF's `q4_0`), so codes
/// minus 8 are -8..=7. No number is off by more than the magnitude of its scale.
///
/// `codes` is `[nibble_bytes]`: byte `b` of a group of `g` channels holds channel `b` in its low half and channel
/// `ceil(g/2) + b` in its high half. `scales` is `[groups]`.
#[inline(always)]
fn to_int4(row: &[f32], codes: &mut [u8], scales: &mut [f16]) {
    for ((row, codes), stored) in row.chunks(GROUP).zip(codes.chunks_mut(GROUP / 2)).zip(scales) {
        let (low, high) = extremes(row);
        let magnitude = round_up(high.max(-low) / 8.0);
        *stored = if high > -low { -magnitude } else { magnitude };
        let inverse = inverse(stored.to_f32());
        let (first, second) = row.split_at(codes.len());
        let code = |x: f32| {
            let x = x * inverse + 8.0;
            nearest(if x < 15.0 { x } else { 15.0 })
        };
        for (byte, x) in codes.iter_mut().zip(first) {
            *byte = code(*x);
        }
        for (byte, x) in codes.iter_mut().zip(second) {
            *byte |= code(*x) << 4;
        }
    }
}

/// Appends rows of 4-bit codes, `[tokens, nibble_bytes]`, to `rows` as f32.
fn from_int4(codes: &[u8], scales: &[f16], channels: usize, rows: &mut Vec<f32>) {
    let codes = codes.chunks_exact(nibble_bytes(channels));
    for (codes, scales) in codes.zip(scales.chunks_exact(groups(channels))) {
        for (group, (codes, scale)) in codes.chunks(GROUP / 2).zip(scales).enumerate() {
            let (scale, width) = (scale.to_f32(), GROUP.min(channels - group * GROUP));
            let value = |code: u8| (f32::from(code) - 8.0) * scale;
            rows.extend(codes.iter().map(|byte| value(byte & 15)));
            rows.extend(codes[..width / 2].iter().map(|byte| value(byte >> 4)));
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
        fn four_bits_are_off_by_a_scale_at_most(row in row()) {
            let channels = row.len();
            let (mut codes, mut scales) = (vec![0xff; nibble_bytes(channels)], vec![f16::ZERO; groups(channels)]);
            to_int4(&row, &mut codes, &mut scales);
            for isa in Isa::available() {
                let (mut again, mut again_scales) = (vec![0; nibble_bytes(channels)], vec![f16::ZERO; groups(channels)]);
                dispatch!(isa, _simd => to_int4(&row, &mut again, &mut again_scales));
                prop_assert_eq!((&again, &again_scales), (&codes, &scales), "{}", isa);
            }
            let mut back = Vec::new();
            from_int4(&codes, &scales, channels, &mut back);
            prop_assert_eq!(back.len(), channels);
            for (j, (x, y)) in row.iter().zip(&back).enumerate() {
                let scale = scales[j / GROUP].to_f32().abs();
                prop_assert!((x - y).abs() <= 1.0001 * scale, "{x} {y} {scale}");
                // Only the side opposite to the largest magnitude can be clipped.
                let clipped = x * scales[j / GROUP].to_f32() > 7.5 * scale * scale;
                prop_assert!(clipped || (x - y).abs() <= 0.5001 * scale, "{x} {y} {scale}");
            }
        }
    }

    #[test]
    fn a_short_group_is_laid_out_like_a_whole_one() {
        // Five channels: 0, 1, 2 low, then 3, 4 high.
        let row = [-8.0, -7.0, 1.0, 2.0, 7.0];
        let (mut codes, mut scales) = (vec![0; nibble_bytes(5)], vec![f16::ZERO]);
        to_int4(&row, &mut codes, &mut scales);
        assert_eq!(scales[0].to_f32(), 1.0);
        assert_eq!(codes, [0xa0, 0xf1, 0x09]);
        assert_eq!([1, 31, 32, 33, 64, 80].map(nibble_bytes), [1, 16, 16, 17, 32, 40]);
    }
}
