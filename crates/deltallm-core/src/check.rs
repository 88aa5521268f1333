//! What comes in is checked here: rows of numbers, and names.

use std::str::FromStr;

use deltallm_simd::{Isa, dispatch};

use crate::{element::ElementType, error::CoreError, fingerprint::ModelFingerprint};

/// Checks a row on its way into a store: `channels` numbers that `element` holds. Later steps do not check it again.
///
/// # Errors
/// [`CoreError::Channels`] or [`CoreError::NotStorable`].
pub(crate) fn check_row(row: &[f32], channels: usize, element: ElementType) -> Result<(), CoreError> {
    if row.len() != channels {
        return Err(CoreError::Channels { expected: channels, got: row.len() });
    }
    if dispatch!(Isa::best(), _simd => element.holds(row)) { Ok(()) } else { element.check(row) }
}

/// Most channels of all heads of a layer together: fifty times those of the largest models. What is larger is a mistake, and is
/// refused before memory is asked for.
pub const LAYER_CHANNELS: usize = 1 << 20;

/// Checks the heads of a layer for which nothing has been allocated yet.
///
/// # Errors
/// [`CoreError::Channels`] for more than [`LAYER_CHANNELS`].
pub(crate) fn check_layer(kv_heads: usize, head_dim: usize) -> Result<(), CoreError> {
    let got = kv_heads.max(1).saturating_mul(head_dim.max(1));
    if got > LAYER_CHANNELS { Err(CoreError::Channels { expected: LAYER_CHANNELS, got }) } else { Ok(()) }
}

/// Checks thresholds: finite and not negative.
///
/// # Errors
/// [`CoreError::Threshold`] names the first one that is not.
pub(crate) fn check_thresholds(thresholds: &[f32]) -> Result<(), CoreError> {
    match thresholds.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
        Some(index) => Err(CoreError::Threshold { index, got: thresholds[index] }),
        None => Ok(()),
    }
}

impl ElementType {
    /// Checks that every number of a row can be stored.
    ///
    /// # Errors
    /// [`CoreError::NotStorable`] names the first channel that is NaN, infinite or too large.
    pub fn check(self, row: &[f32]) -> Result<(), CoreError> {
        if self.holds(row) {
            return Ok(());
        }
        let limit = self.max_magnitude();
        // NaN compares with nothing, so it counts as too large here.
        let channel = row.iter().position(|x| x.is_nan() || x.abs() > limit).unwrap_or(0);
        Err(CoreError::NotStorable { channel, element: self, limit, got: row[channel] })
    }
}

impl FromStr for ElementType {
    type Err = CoreError;

    fn from_str(name: &str) -> Result<Self, CoreError> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|element| element.name() == name).ok_or_else(
            || CoreError::UnknownName {
                what: "element type",
                expected: "f32, f16, bf16",
                got: name.to_owned(),
            },
        )
    }
}

impl FromStr for ModelFingerprint {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| digits).map(Self).ok_or_else(|| {
            CoreError::UnknownName {
                what: "model fingerprint",
                expected: "16 hexadecimal digits",
                got: text.to_owned(),
            }
        })
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for ModelFingerprint {
    type Error = CoreError;

    fn try_from(text: String) -> Result<Self, CoreError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_storable_up_to_the_largest_magnitude() {
        for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
            let limit = element.max_magnitude();
            for x in [0.0, -0.0, f32::from_bits(1), -f32::MIN_POSITIVE, 1.0, limit, -limit] {
                assert_eq!(element.check(&[1.0, x]), Ok(()), "{element} {x}");
            }
            for x in
                [limit.next_up(), -limit.next_up(), f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN]
            {
                let mut row = [1.0; 37];
                row[29] = x;
                let error = element.check(&row).unwrap_err();
                assert!(
                    matches!(error, CoreError::NotStorable { channel: 29, .. }),
                    "{element} {x}: {error}"
                );
            }
        }
    }
}
