//! Rounding of what has been found.

/// Four significant digits say all that a measured threshold can.
pub(super) fn four_digits(x: f32) -> f32 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_kept() {
        assert_eq!([0.123_456, 1234.56, 0.0].map(four_digits), [0.123_5, 1235.0, 0.0]);
    }
}
