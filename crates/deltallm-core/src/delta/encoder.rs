//! The element rule of delta coding, one key at a time.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

use crate::{
    CoreError, ElementType, HeadThresholds,
    coding::{from_codes, moved, or_nonzero, select, select_codes, to_codes},
    quantise::inverse,
};

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
/// (equation 2). With 8-bit codes ([`DeltaMatrix::int8`](crate::DeltaMatrix::int8)) it is the threshold alone.
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
    thresholds: HeadThresholds,
    rounding: Rounding,
    reference: Vec<f32>,
    /// The channels the latest key transmitted, one bit each.
    sent: Vec<u64>,
    /// Keys coded, and the entries transmitted for them.
    tokens: usize,
    nonzeros: usize,
    /// Working memory: the key as it would be stored.
    stored: Vec<f32>,
    isa: Isa,
}

/// How transmitted values are rounded.
#[derive(Debug, Clone)]
enum Rounding {
    Float(ElementType),
    Int8(Steps),
}

/// 8-bit codes: a value is `code * step`, with a step per channel that is fixed for a block. A value whose code would be
/// off by more than the threshold *escapes*: its code is 0, and the value is stored beside.
#[derive(Debug, Clone)]
struct Steps {
    /// Steps when the factor is 1, `[channels]`.
    base: Vec<f32>,
    /// Factor of the block being written.
    factor: f32,
    /// `[channels]`, for that factor.
    steps: Vec<f32>,
    inverse: Vec<f32>,
    /// The latest key, and which channels of it escaped.
    codes: Vec<i8>,
    escaped: Vec<u64>,
    /// The codes that the receiver has, and what those of the latest key differ by from those it had before, modulo 256.
    held: Vec<i8>,
    differences: Vec<i8>,
}

/// What a step is in units of its threshold. Of 1/2, 1 and 2 this keeps most zeros and bytes
/// (`docs/results/stores.md`): twice the step leaves channels closer to their thresholds, so that they are sent again sooner.
const STEP: f32 = 1.0;

/// The step of a channel; 0 where it would be too small or too large to count in.
#[inline]
pub(crate) fn step(base: f32, factor: f32) -> f32 {
    let step = base * factor;
    if (f32::MIN_POSITIVE..=f32::MAX).contains(&step) { step } else { 0.0 }
}

impl Steps {
    fn new(thresholds: &HeadThresholds) -> Self {
        let channels = thresholds.start.len();
        let mut steps = Self {
            base: thresholds.start.iter().map(|theta| step(*theta, STEP)).collect(),
            factor: 1.0,
            steps: vec![0.0; channels],
            inverse: vec![0.0; channels],
            codes: vec![0; channels],
            escaped: vec![0; words(channels)],
            held: vec![0; channels],
            differences: vec![0; channels],
        };
        steps.set_factor(1.0);
        steps
    }

    /// Codes a key, and finds the channels whose codes are further off than the threshold.
    #[inline(always)]
    fn round<S: Simd>(&mut self, simd: S, key: &[f32], thresholds: &[f32], factor: f32, stored: &mut [f32]) {
        to_codes(key, &self.inverse, &mut self.codes);
        from_codes(&self.codes, &self.steps, stored);
        moved(simd, key, stored, thresholds, factor, &mut self.escaped);
    }

    /// The receiver gets the codes of the channels of `sent`.
    #[inline(always)]
    fn send<S: Simd>(&mut self, simd: S, sent: &[u64]) {
        for ((difference, code), held) in self.differences.iter_mut().zip(&self.codes).zip(&self.held) {
            *difference = code.wrapping_sub(*held);
        }
        select_codes(simd, sent, &self.codes, &mut self.held);
    }

    fn set_factor(&mut self, factor: f32) {
        self.factor = factor;
        for ((s, i), base) in self.steps.iter_mut().zip(&mut self.inverse).zip(&self.base) {
            *s = step(*base, factor);
            *i = inverse(*s);
        }
    }
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
            rounding: Rounding::Float(element),
            reference: vec![0.0; channels],
            sent: vec![0; words(channels)],
            tokens: 0,
            nonzeros: 0,
            stored: vec![0.0; channels],
            isa: Isa::best(),
        })
    }

    /// An encoder for 8-bit codes.
    pub(crate) fn int8(thresholds: impl Into<HeadThresholds>) -> Result<Self, CoreError> {
        let encoder = Self::new(thresholds, ElementType::F32)?;
        let most = usize::from(u16::MAX) + 1;
        if encoder.channels() > most {
            return Err(CoreError::Channels { expected: most, got: encoder.channels() });
        }
        Ok(Self { rounding: Rounding::Int8(Steps::new(&encoder.thresholds)), ..encoder })
    }

    /// An encoder for 8-bit codes with the thresholds of this one, before its first key.
    pub(crate) fn to_int8(&self) -> Result<Self, CoreError> {
        Self::int8(self.thresholds.clone())
    }

    /// Channels of a key.
    pub fn channels(&self) -> usize {
        self.reference.len()
    }

    /// Codes the next key (`[channels]`) and returns the channels that were transmitted, channel `j` at bit `j % 64` of word
    /// `j / 64`; their new values stand in [`reconstruction`](Self::reconstruction).
    ///
    /// # Errors
    /// [`CoreError::Channels`] or [`CoreError::NotStorable`]; the state is unchanged then.
    pub fn encode(&mut self, key: &[f32]) -> Result<&[u64], CoreError> {
        self.check(key)?;
        let factor = self.thresholds.factor(self.tokens, self.nonzeros);
        let (reference, thresholds, sent) = (&self.reference, &self.thresholds.start, &mut self.sent);
        dispatch!(self.isa, simd => moved(simd, key, reference, thresholds, factor, sent));
        if self.tokens == 0 {
            or_nonzero(key, sent);
        }
        self.transmit_sent(key, factor);
        Ok(&self.sent)
    }

    /// Codes the next key, which has passed [`check`](Self::check), with the channels of `sent` transmitted.
    pub(crate) fn transmit(&mut self, key: &[f32], sent: &[u64]) {
        let factor = self.thresholds.factor(self.tokens, self.nonzeros);
        self.sent.copy_from_slice(sent);
        self.transmit_sent(key, factor);
    }

    /// Checks that a key can be coded.
    ///
    /// # Errors
    /// [`CoreError::Channels`] or [`CoreError::NotStorable`].
    pub(crate) fn check(&self, key: &[f32]) -> Result<(), CoreError> {
        if key.len() != self.channels() {
            return Err(CoreError::Channels { expected: self.channels(), got: key.len() });
        }
        // Whatever does not fit a code escapes as f32.
        let element = self.element().unwrap_or(ElementType::F32);
        if dispatch!(self.isa, _simd => element.holds(key)) { Ok(()) } else { element.check(key) }
    }

    fn transmit_sent(&mut self, key: &[f32], factor: f32) {
        let Self { thresholds, rounding, reference, sent, stored, isa, .. } = self;
        match rounding {
            Rounding::Float(ElementType::F32) => stored.copy_from_slice(key),
            Rounding::Float(element) => element.round_row(key, stored),
            Rounding::Int8(steps) => {
                dispatch!(*isa, simd => steps.round(simd, key, &thresholds.start, factor, stored))
            }
        }
        dispatch!(*isa, simd => select(simd, sent, stored, reference));
        if let Rounding::Int8(steps) = rounding {
            // Wherever the stored value is not within the threshold, a transmitted channel escapes.
            for (escaped, sent) in steps.escaped.iter_mut().zip(&*sent) {
                *escaped &= sent;
            }
            for channel in bits(&steps.escaped) {
                steps.codes[channel] = 0;
                reference[channel] = key[channel];
            }
            dispatch!(*isa, simd => steps.send(simd, sent));
        }
        self.tokens += 1;
        self.nonzeros += self.sent.iter().map(|word| word.count_ones() as usize).sum::<usize>();
    }

    /// What the receiver of the deltas holds for the latest key: `[channels]`, zero before the first key.
    pub fn reconstruction(&self) -> &[f32] {
        &self.reference
    }

    /// The instruction set of the inner loops.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    /// The channels the latest key transmitted.
    pub(crate) fn sent(&self) -> &[u64] {
        &self.sent
    }

    /// The thresholds that the next key will be held to, `[channels]`.
    pub fn thresholds(&self) -> Vec<f32> {
        let factor = self.thresholds.factor(self.tokens, self.nonzeros);
        self.thresholds.start.iter().map(|theta| theta * factor).collect()
    }

    /// The element type of the store the encoder writes for; `None` for 8-bit codes.
    pub(crate) fn element(&self) -> Option<ElementType> {
        match self.rounding {
            Rounding::Float(element) => Some(element),
            Rounding::Int8(_) => None,
        }
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

/// Blocks of 8-bit codes.
impl DeltaEncoder {
    /// The step factor of a block that would start now.
    pub(crate) fn block_factor(&self) -> f32 {
        match &self.rounding {
            Rounding::Float(_) => 1.0,
            Rounding::Int8(_) => self.thresholds.factor(self.tokens, self.nonzeros),
        }
    }

    /// Starts a block with this step factor. The reference becomes what the block's key frame gives back: it is no
    /// longer the reconstruction of the key before, and the next key is compared with it. Does nothing in a float store,
    /// whose key frames are the reference as it is.
    pub(crate) fn start_block(&mut self, factor: f32) {
        let Rounding::Int8(steps) = &mut self.rounding else { return };
        steps.set_factor(factor);
        let factor = self.thresholds.factor(self.tokens, self.nonzeros);
        let (reference, thresholds, stored) = (&self.reference, &self.thresholds.start, &mut self.stored);
        dispatch!(self.isa, simd => steps.round(simd, reference, thresholds, factor, stored));
        for channel in bits(&steps.escaped) {
            steps.codes[channel] = 0;
            self.stored[channel] = self.reference[channel];
        }
        steps.held.copy_from_slice(&steps.codes);
        self.reference.copy_from_slice(&self.stored);
    }

    /// Goes on in a block of this step factor, whose last key has these codes.
    pub(crate) fn resume_block(&mut self, factor: f32, codes: &[i8]) {
        if let Rounding::Int8(steps) = &mut self.rounding {
            steps.set_factor(factor);
            steps.held.copy_from_slice(codes);
        }
    }

    /// The codes that the receiver has; none in a float store.
    pub(crate) fn codes(&self) -> &[i8] {
        match &self.rounding {
            Rounding::Float(_) => &[],
            Rounding::Int8(steps) => &steps.held,
        }
    }

    /// What the codes of the latest key have changed by, of every channel, transmitted or not; none in a float store.
    pub(crate) fn differences(&self) -> &[i8] {
        match &self.rounding {
            Rounding::Float(_) => &[],
            Rounding::Int8(steps) => &steps.differences,
        }
    }

    /// The channels of the latest key or key frame whose values escaped.
    pub(crate) fn escaped(&self) -> impl Iterator<Item = usize> {
        let words = match &self.rounding {
            Rounding::Float(_) => &[][..],
            Rounding::Int8(steps) => &steps.escaped,
        };
        bits(words)
    }

    /// Goes on from another reconstruction of the key before.
    pub(crate) fn set_reference(&mut self, row: &[f32]) {
        self.reference.copy_from_slice(row);
    }

    /// The steps of factor 1, `[channels]`; none in a float store.
    pub(crate) fn base_steps(&self) -> &[f32] {
        match &self.rounding {
            Rounding::Float(_) => &[],
            Rounding::Int8(steps) => &steps.base,
        }
    }
}

/// A narrower store.
impl DeltaEncoder {
    /// Goes on in a store of another float type, which holds the reference rounded.
    pub(crate) fn set_element(&mut self, element: ElementType) {
        self.rounding = Rounding::Float(element);
        element.round_row(&self.reference, &mut self.stored);
        self.reference.copy_from_slice(&self.stored);
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
