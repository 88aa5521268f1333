//! The element rule of delta coding, one key at a time.

use crate::{CoreError, ElementType, HeadThresholds};

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
/// (equation 2).
#[derive(Debug, Clone)]
pub struct DeltaEncoder {
    thresholds: HeadThresholds,
    element: ElementType,
    reference: Vec<f32>,
    sent: ChannelMask,
    /// Keys coded, and the entries transmitted for them.
    tokens: usize,
    nonzeros: usize,
}

impl DeltaEncoder {
    /// An encoder with one threshold per channel, in the units of the keys: a `Vec<f32>` of fixed ones, or
    /// [`HeadThresholds`] that follow a target.
    ///
    /// # Errors
    /// [`CoreError::Threshold`] for a threshold that is negative, NaN or infinite; [`CoreError::Channels`] for an
    /// empty list; [`CoreError::ZeroFraction`] for a target outside of 0..=1.
    pub fn new(thresholds: impl Into<HeadThresholds>, element: ElementType) -> Result<Self, CoreError> {
        let thresholds = thresholds.into();
        thresholds.check()?;
        let channels = thresholds.start.len();
        Ok(Self {
            thresholds,
            element,
            reference: vec![0.0; channels],
            sent: ChannelMask::new(channels),
            tokens: 0,
            nonzeros: 0,
        })
    }

    /// Channels of a key.
    pub fn channels(&self) -> usize {
        self.reference.len()
    }

    /// Codes the next key (`[channels]`) and returns the channels that were transmitted; their new values stand in
    /// [`reconstruction`](Self::reconstruction).
    ///
    /// # Errors
    /// [`CoreError::Channels`] or [`CoreError::NotStorable`]; the state is unchanged then.
    pub fn encode(&mut self, key: &[f32]) -> Result<&ChannelMask, CoreError> {
        let expected = self.channels();
        if key.len() != expected {
            return Err(CoreError::Channels { expected, got: key.len() });
        }
        self.element.check(key)?;
        let (started, factor) = (self.tokens > 0, self.thresholds.factor(self.tokens, self.nonzeros));
        for (word, first) in self.sent.words.iter_mut().zip((0..).step_by(64)) {
            let last = expected.min(first + 64);
            let (key, reference) = (&key[first..last], &mut self.reference[first..last]);
            let mut bits = 0;
            for (j, ((k, r), theta)) in
                key.iter().zip(reference).zip(&self.thresholds.start[first..last]).enumerate()
            {
                let moved = (k - *r).abs() > *theta * factor || (!started && *k != 0.0);
                bits |= u64::from(moved) << j;
                *r = if moved { self.element.round(*k) } else { *r };
            }
            *word = bits;
        }
        self.tokens += 1;
        self.nonzeros += self.sent.count();
        Ok(&self.sent)
    }

    /// What the receiver of the deltas holds for the latest key: `[channels]`, zero before the first key.
    pub fn reconstruction(&self) -> &[f32] {
        &self.reference
    }

    /// The channels the latest key transmitted.
    pub(crate) fn sent(&self) -> &ChannelMask {
        &self.sent
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub fn thresholds(&self) -> Vec<f32> {
        let factor = self.thresholds.factor(self.tokens, self.nonzeros);
        self.thresholds.start.iter().map(|theta| theta * factor).collect()
    }

    /// The element type of the store the encoder writes for.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Goes back to the state in which `tokens` keys had been coded with `nonzeros` entries and the last reconstruction
    /// was `reconstruction` (none if there was no key).
    pub(crate) fn rewind(&mut self, tokens: usize, nonzeros: usize, reconstruction: Option<&[f32]>) {
        (self.tokens, self.nonzeros) = (tokens, nonzeros);
        match reconstruction {
            Some(row) => self.reference.copy_from_slice(row),
            None => self.reference.fill(0.0),
        }
    }
}

impl DeltaEncoder {
    /// A fresh encoder with fixed thresholds of `factor` times those of the moment.
    pub(crate) fn scaled(&self, factor: f32) -> Result<Self, CoreError> {
        let thresholds: Vec<f32> = self.thresholds().iter().map(|theta| factor * theta).collect();
        Self::new(thresholds, self.element)
    }

    /// Goes on with thresholds `factor` times as high, after the keys so far have been coded again as `nonzeros` entries
    /// that add up to `reconstruction`.
    pub(crate) fn raise(&mut self, factor: f32, nonzeros: usize, reconstruction: &[f32]) {
        self.thresholds.raise(factor, self.tokens, self.nonzeros.saturating_sub(nonzeros));
        self.rewind(self.tokens, nonzeros, Some(reconstruction));
    }

    /// Goes on in a store of another type, which holds the reference rounded.
    pub(crate) fn set_element(&mut self, element: ElementType) {
        self.element = element;
        self.reference.iter_mut().for_each(|r| *r = element.round(*r));
    }
}

/// A set of channels, one bit each, in words of 64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMask {
    words: Vec<u64>,
}

impl ChannelMask {
    fn new(channels: usize) -> Self {
        Self { words: vec![0; words(channels)] }
    }

    /// The bits, channel `j` at bit `j % 64` of word `j / 64`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Channels in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|w| w.count_ones() as usize).sum()
    }

    /// The channels in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        bits(&self.words)
    }
}

/// Words of 64 bits that `channels` bits need.
pub(crate) fn words(channels: usize) -> usize {
    channels.div_ceil(64)
}

/// Positions of the set bits, ascending.
pub(crate) fn bits(words: &[u64]) -> impl Iterator<Item = usize> + '_ {
    words.iter().zip((0..).step_by(64)).flat_map(|(&word, first)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            (rest != 0).then(|| {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                first + bit
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_with_the_last_transmitted_value_and_not_with_the_previous_key() {
        let mut encoder = DeltaEncoder::new(vec![1.0], ElementType::F32).unwrap();
        let sent: Vec<usize> =
            [1.0, 1.6, 2.2, 2.8].iter().map(|k| encoder.encode(&[*k]).unwrap().count()).collect();
        // Each step is 0.6, but 2.2 is 1.2 away from the 1.0 that was sent.
        assert_eq!(sent, [1, 0, 1, 0]);
        assert_eq!(encoder.reconstruction(), [2.2]);
    }

    #[test]
    fn a_difference_equal_to_the_threshold_is_not_sent() {
        let mut encoder = DeltaEncoder::new(vec![0.5, 0.5], ElementType::F32).unwrap();
        encoder.encode(&[1.0, 1.0]).unwrap();
        assert_eq!(encoder.encode(&[1.5, 1.75]).unwrap().iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn the_first_key_is_sent_whole_whatever_the_threshold() {
        let mut encoder = DeltaEncoder::new(vec![10.0; 70], ElementType::F32).unwrap();
        let key: Vec<f32> = (0..70).map(|j| j as f32 * 0.01 + 0.01).collect();
        assert_eq!(encoder.encode(&key).unwrap().count(), 70);
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
