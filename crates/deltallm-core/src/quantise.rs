//! Rounding to 8 and 4 bits: small pure loops over slices, without branches inside, so that they can be vectorised.
//!
//! A *group* is [`GROUP`] neighbouring channels of a row that share a scale; the last group of a row may be shorter.
//! Scales are f16, rounded away from zero, so that rounding a scale never pushes a code out of its range.

use half::f16;

/// Channels of a row that share a scale.
pub const GROUP: usize = 32;

/// 1.5 * 2^23: added to a number below 2^22 in magnitude it leaves the nearest integer (ties to even) in the low bits.
const ROUND: f32 = 12_582_912.0;

/// The integer nearest to `x`, which is within -128..=255, as the byte of its two's complement.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> u8 {
    (x + ROUND).to_bits() as u8
}

/// Groups in a row.
pub(crate) fn groups(channels: usize) -> usize {
    channels.div_ceil(GROUP)
}

/// Bytes of a row of 4-bit codes: two channels of the same group a byte.
pub(crate) fn nibble_bytes(channels: usize) -> usize {
    channels / GROUP * (GROUP / 2) + (channels % GROUP).div_ceil(2)
}

/// The smallest f16 that is not below `x` (which is not negative).
#[inline(always)]
pub(crate) fn round_up(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() < x { f16::from_bits(near.to_bits() + 1) } else { near }
}

/// `1 / x`, or 0 where that is no use: for zero, and for what is too small to divide by.
#[inline(always)]
pub(crate) fn inverse(x: f32) -> f32 {
    if x.abs() >= f32::MIN_POSITIVE { 1.0 / x } else { 0.0 }
}

/// Smallest and largest of `row`, and zero.
#[inline(always)]
fn extremes(row: &[f32]) -> (f32, f32) {
    // Comparisons of values in registers, not `f32::min`: these are single instructions.
    let (smaller, larger) =
        (|a: f32, b: f32| if a < b { a } else { b }, |a: f32, b: f32| if a > b { a } else { b });
    let (mut low, mut high) = ([0.0_f32; 8], [0.0_f32; 8]);
    let (parts, rest) = row.as_chunks::<8>();
    for part in parts {
        for i in 0..8 {
            (low[i], high[i]) = (smaller(part[i], low[i]), larger(part[i], high[i]));
        }
    }
    for (i, x) in rest.iter().enumerate() {
        (low[i], high[i]) = (smaller(*x, low[i]), larger(*x, high[i]));
    }
    (low.into_iter().fold(0.0, smaller), high.into_iter().fold(0.0, larger))
}

/// Rounds one row to 8 bits: per group the scale is the largest magnitude over 127 (GGUF's `q8_0`). No number is off by
/// more than half its scale.
///
/// `codes` is `[channels]`, `scales` `[groups]`.
#[inline(always)]
pub(crate) fn to_int8(row: &[f32], codes: &mut [i8], scales: &mut [f16]) {
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
pub(crate) fn from_int8(codes: &[i8], scales: &[f16], channels: usize, rows: &mut Vec<f32>) {
    for (codes, scales) in codes.chunks_exact(channels).zip(scales.chunks_exact(groups(channels))) {
        for (codes, scale) in codes.chunks(GROUP).zip(scales) {
            let scale = scale.to_f32();
            rows.extend(codes.iter().map(|code| f32::from(*code) * scale));
        }
    }
}

/// Rounds one row to 4 bits: per group the scale is the number of largest magnitude over -8 (GGUF's `q4_0`), so codes
/// minus 8 are -8..=7. No number is off by more than the magnitude of its scale.
///
/// `codes` is `[nibble_bytes]`: byte `b` of a group of `g` channels holds channel `b` in its low half and channel
/// `ceil(g/2) + b` in its high half. `scales` is `[groups]`.
#[inline(always)]
pub(crate) fn to_int4(row: &[f32], codes: &mut [u8], scales: &mut [f16]) {
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
pub(crate) fn from_int4(codes: &[u8], scales: &[f16], channels: usize, rows: &mut Vec<f32>) {
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
    use super::*;
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = Vec<f32>> {
        let size = prop_oneof![Just(1.0_f32), Just(60_000.0), Just(1e-4), Just(1e-7), Just(0.0)];
        (1_usize..131, size).prop_flat_map(|(len, size)| {
            prop::collection::vec((-1.0_f32..1.0).prop_map(move |x| x * size), len)
        })
    }

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

        #[test]
        fn four_bits_are_off_by_a_scale_at_most(row in row()) {
            let channels = row.len();
            let (mut codes, mut scales) = (vec![0xff; nibble_bytes(channels)], vec![f16::ZERO; groups(channels)]);
            to_int4(&row, &mut codes, &mut scales);
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
