//! What rounding to codes has in common: groups with a scale, and the nearest integer. Small pure functions without branches, so that
//! loops over them can be vectorised.
//!
//! A *group* is [`GROUP`] neighbouring channels of a row that share a scale; the last group of a row may be shorter.
//! Scales are f16, rounded away from zero, so that rounding a scale never pushes a code out of its range.

use deltallm_simd::math::nearest_bits;
use half::f16;

/// Channels of a row that share a scale.
pub const GROUP: usize = 32;

/// The integer nearest to `x`, which is within -128..=255, as the byte of its two's complement.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> u8 {
    nearest_bits(x) as u8
}

/// Groups in a row.
pub(crate) fn groups(channels: usize) -> usize {
    channels.div_ceil(GROUP)
}

/// Bytes of the scales of a row.
pub(crate) fn scale_bytes(channels: usize) -> usize {
    groups(channels).saturating_mul(size_of::<f16>())
}

/// The smallest f16 that is not below `x` (which is not negative).
#[inline(always)]
pub(crate) fn round_up(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() < x { f16::from_bits(near.to_bits() + 1) } else { near }
}

/// `1 / x`, or 0 where that would not be finite: for zero and for numbers too small to divide by.
#[inline(always)]
pub(crate) fn inverse(x: f32) -> f32 {
    if x.abs() >= f32::MIN_POSITIVE { 1.0 / x } else { 0.0 }
}

/// Smallest and largest of `row`, and zero.
#[inline(always)]
pub(crate) fn extremes(row: &[f32]) -> (f32, f32) {
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

/// Rows for the tests of the codecs, of very different sizes.
#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    pub(crate) fn row() -> impl Strategy<Value = Vec<f32>> {
        let size = prop_oneof![Just(1.0_f32), Just(60_000.0), Just(1e-4), Just(1e-7), Just(0.0)];
        (1_usize..131, size).prop_flat_map(|(len, size)| {
            prop::collection::vec((-1.0_f32..1.0).prop_map(move |x| x * size), len)
        })
    }
}
