//! The element rule of delta coding, one key at a time.

use super::{float::FloatCodec, rule::Rule};
use crate::{check::check_row, element::ElementType, error::CoreError, threshold::HeadThresholds};

/// Codes the keys of one kv head: a channel is transmitted when it has moved by more than its threshold since it was
/// last transmitted (`docs/method.md`, equation 1).
///
/// The encoder keeps a single row of state, the *reference*. Because a key is compared with the last **transmitted**
/// value and not with the previous key, the reference is always the reconstruction of the latest key, and
/// `|k[j] - reconstruction[j]| <= threshold[j]` holds in every channel at every step; errors do not add up. The first
/// key is transmitted whole.
///
/// The reference holds values as the cache stores them. With a 16-bit [`ElementType`] a transmitted channel is off by
/// that type's rounding instead, so in general the bound is the larger of the threshold and the rounding error
/// (equation 2). With codes in steps
/// ([`DeltaMatrix::in_steps`](crate::DeltaMatrix::in_steps)) it is the threshold alone.
///
/// ```
/// use deltallm_core::{DeltaEncoder, ElementType};
///
/// let mut encoder = DeltaEncoder::new(vec![0.25], ElementType::F32)?;
/// let mut sent = Vec::new();
/// for key in [1.0, 1.2, 1.3, 1.4] {
///     sent.push(encoder.encode(&[key])?[0]); // one channel: the lowest bit
/// }
/// // 1.2 is within 0.25 of 1.0, the last value sent; 1.3 is not, and 1.4 is within 0.25 of 1.3.
/// assert_eq!(sent, [1, 0, 1, 0]);
/// assert_eq!(encoder.reconstruction(), [1.3]);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone)]
pub struct DeltaEncoder {
    rule: Rule,
    codec: FloatCodec,
}

impl DeltaEncoder {
    /// An encoder with one threshold per channel, in the units of the keys: a `Vec<f32>` of fixed ones, or
    /// [`HeadThresholds`] that follow a target.
    ///
    /// # Errors
    /// [`CoreError::Threshold`] for a threshold that is negative, NaN or infinite; [`CoreError::Channels`] for an
    /// empty list; [`CoreError::ZeroFraction`] for a target outside of 0..=1.
    pub fn new(thresholds: impl Into<HeadThresholds>, element: ElementType) -> Result<Self, CoreError> {
        let rule = Rule::new(thresholds.into())?;
        let codec = FloatCodec::new(element, rule.channels());
        Ok(Self { rule, codec })
    }

    /// Channels of a key.
    pub fn channels(&self) -> usize {
        self.rule.channels()
    }

    /// Codes the next key (`[channels]`) and returns the channels that were transmitted, channel `j` at bit `j % 64` of word
    /// `j / 64`; their new values stand in [`reconstruction`](Self::reconstruction).
    ///
    /// # Errors
    /// [`CoreError::Channels`] or [`CoreError::NotStorable`]; the state is unchanged then.
    pub fn encode(&mut self, key: &[f32]) -> Result<&[u64], CoreError> {
        check_row(key, self.rule.channels(), self.codec.element())?;
        self.rule.choose(key);
        self.codec.transmit(key, &mut self.rule);
        Ok(&self.rule.sent)
    }

    /// What the receiver of the deltas holds for the latest key: `[channels]`, zero before the first key.
    pub fn reconstruction(&self) -> &[f32] {
        &self.rule.reference
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub fn thresholds(&self) -> Vec<f32> {
        self.rule.next_thresholds()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_with_the_last_transmitted_value_and_not_with_the_previous_key() {
        let mut encoder = DeltaEncoder::new(vec![1.0], ElementType::F32).unwrap();
        let sent: Vec<u64> = [1.0, 1.6, 2.2, 2.8].iter().map(|k| encoder.encode(&[*k]).unwrap()[0]).collect();
        // Each step is 0.6, but 2.2 is 1.2 away from the 1.0 that was sent.
        assert_eq!(sent, [1, 0, 1, 0]);
        assert_eq!(encoder.reconstruction(), [2.2]);
    }

    #[test]
    fn a_difference_equal_to_the_threshold_is_not_sent() {
        let mut encoder = DeltaEncoder::new(vec![0.5, 0.5], ElementType::F32).unwrap();
        encoder.encode(&[1.0, 1.0]).unwrap();
        assert_eq!(encoder.encode(&[1.5, 1.75]).unwrap(), [0b10]);
    }

    #[test]
    fn nor_is_it_sent_in_whole_vectors() {
        let mut encoder = DeltaEncoder::new(vec![0.5; 64], ElementType::F32).unwrap();
        encoder.encode(&[1.0; 64]).unwrap();
        assert_eq!(encoder.encode(&[1.5; 64]).unwrap(), [0]);
    }

    #[test]
    fn the_first_key_is_sent_whole_whatever_the_threshold() {
        let mut encoder = DeltaEncoder::new(vec![10.0; 70], ElementType::F32).unwrap();
        let key: Vec<f32> = (0..70).map(|j| j as f32 * 0.01 + 0.01).collect();
        assert_eq!(encoder.encode(&key).unwrap(), [u64::MAX, (1 << 6) - 1]);
        assert_eq!(encoder.reconstruction(), key);
    }

    #[test]
    fn bad_thresholds_are_refused() {
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            let error = DeltaEncoder::new(vec![0.0, bad], ElementType::F32).unwrap_err();
            assert!(matches!(error, CoreError::Threshold { index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn bad_keys_are_refused_and_leave_the_state_alone() {
        let mut encoder = DeltaEncoder::new(vec![0.0; 2], ElementType::F16).unwrap();
        encoder.encode(&[1.0, 2.0]).unwrap();
        for bad in [f32::NAN, f32::NEG_INFINITY, 1e5] {
            let error = encoder.encode(&[3.0, bad]).unwrap_err();
            assert!(matches!(error, CoreError::NotStorable { channel: 1, .. }), "{error}");
        }
        assert_eq!(encoder.encode(&[1.0]).unwrap_err(), CoreError::Channels { expected: 2, got: 1 });
        assert_eq!(encoder.reconstruction(), [1.0, 2.0]);
    }
}
