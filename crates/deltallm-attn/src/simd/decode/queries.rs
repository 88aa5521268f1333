//! Queries for keys of 8 bits: times the steps of the channels, and rounded to 16 bits for the integer dot instructions.
//!
//! A query is `scale * code` with codes within +-32639. A score is off by at most `scale / 2 * sum |key code|`, about 3e-5 of its usual
//! size: as little as the rounding of f16 keys, and far less than what the thresholds allow. The sums themselves are
//! exact: a product is below 2^22, so [`MOST_CHANNELS`] of them stay below 2^31.

/// Channels up to which the sums of products fit in 32 bits.
pub(super) const MOST_CHANNELS: usize = 512;

/// The largest code: its high byte is 127, its low byte 127.
const LARGEST: f32 = 32639.0;

/// Channels whose codes stand together: those of a mask word.
pub(super) const WORD: usize = 64;

/// The codes of [`WORD`] channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes {
    pub(super) whole: [i16; WORD],
    /// The same as `256 * high + low`, both signed bytes, four channels to a number.
    pub(super) high: [i32; WORD / 4],
    pub(super) low: [i32; WORD / 4],
    /// Sums of the codes of each half.
    pub(super) sums: [i32; 2],
}

impl Codes {
    pub(super) const ZERO: Self =
        Self { whole: [0; WORD], high: [0; WORD / 4], low: [0; WORD / 4], sums: [0; 2] };

    #[inline(always)]
    fn new(query: &[f32], inverse: f32) -> Self {
        let mut codes = Self::ZERO;
        for (code, x) in codes.whole.iter_mut().zip(query) {
            *code = round(x * inverse);
        }
        for (i, four) in codes.whole.chunks_exact(4).enumerate() {
            let (mut high, mut low) = ([0; 4], [0; 4]);
            for ((high, low), code) in high.iter_mut().zip(&mut low).zip(four) {
                *high = ((*code + 128) >> 8) as u8;
                *low = *code as u8;
            }
            (codes.high[i], codes.low[i]) = (i32::from_le_bytes(high), i32::from_le_bytes(low));
            codes.sums[i / (WORD / 8)] += four.iter().map(|code| i32::from(*code)).sum::<i32>();
        }
        codes
    }
}

/// To the nearest integer, for magnitudes below 2^22; NaN to anything.
#[inline(always)]
fn round(x: f32) -> i16 {
    // 1.5 * 2^23: the sum has the integer in its low bits.
    (x + 12_582_912.0).to_bits() as i16
}

/// The queries of a group for the keys of one matrix, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct CodedQueries {
    /// Bits of the factor that the steps had; `None` before the first block.
    factor: Option<u32>,
    /// `[heads, channels]`, times the steps, as f32.
    pub(super) exact: Vec<f32>,
    /// `[heads, words]`.
    pub(super) codes: Vec<Codes>,
    /// What a code of 1 is worth, `[heads]`; NaN where a query is infinite, which makes NaN of its scores.
    pub(super) scales: Vec<f32>,
}

impl CodedQueries {
    /// Other queries, or other keys.
    pub(super) fn forget(&mut self) {
        self.factor = None;
    }

    /// Whether they have been made for this factor.
    pub(super) fn are_for(&self, factor: f32) -> bool {
        self.factor == Some(factor.to_bits())
    }

    /// Makes them for keys that are `code * (steps[channel] * factor)`. Channels without a step have the step 1.
    #[inline(always)]
    pub(super) fn prepare(&mut self, queries: &[f32], channels: usize, steps: &[f32], factor: f32) {
        self.factor = Some(factor.to_bits());
        self.exact.clear();
        self.exact.extend_from_slice(queries);
        self.codes.clear();
        self.scales.clear();
        for query in self.exact.chunks_exact_mut(channels) {
            for (q, step) in query.iter_mut().zip(steps) {
                let step = step * factor;
                // Any other step has codes of 0 only, and must not make NaN of them.
                *q = if (f32::MIN_POSITIVE..=f32::MAX).contains(&step) { *q * step } else { 0.0 };
            }
            let largest = query.iter().fold(0.0, |most: f32, q| most.max(q.abs()));
            // A query next to zero gets codes of zero: its scores are below 1e-30.
            let inverse = if largest > 1e-33 { LARGEST / largest } else { 0.0 };
            self.codes.extend(query.chunks(WORD).map(|query| Codes::new(query, inverse)));
            self.scales.push(if largest <= f32::MAX { largest / LARGEST } else { f32::NAN });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_its_two_digits_and_within_half_a_step_of_the_query() {
        let query: Vec<f32> = (0..128).map(|i| 3.0 * (i as f32 * 0.7).sin()).chain([-7.0; 64]).collect();
        let mut coded = CodedQueries::default();
        coded.prepare(&query, 192, &[], 1.0);
        let scale = coded.scales[0];
        for (query, codes) in query.chunks(WORD).zip(&coded.codes) {
            let bytes = |digits: &[i32; WORD / 4]| -> Vec<i32> {
                digits.iter().flat_map(|x| x.to_le_bytes()).map(|x| i32::from(x as i8)).collect()
            };
            let (high, low) = (bytes(&codes.high), bytes(&codes.low));
            for (i, q) in query.iter().enumerate() {
                assert_eq!(i32::from(codes.whole[i]), 256 * high[i] + low[i]);
                assert!((scale * f32::from(codes.whole[i]) - q).abs() <= 0.501 * scale, "{q}");
            }
            let sum = |half: &[i16]| half.iter().map(|code| i32::from(*code)).sum::<i32>();
            assert_eq!(codes.sums, [sum(&codes.whole[..32]), sum(&codes.whole[32..])]);
        }
    }

    #[test]
    fn queries_are_for_one_factor_and_an_infinite_one_is_not_lost() {
        let mut coded = CodedQueries::default();
        coded.prepare(&[2.0; 16], 16, &[0.5; 16], 1.0);
        assert!(coded.are_for(1.0) && !coded.are_for(2.0));
        assert_eq!(coded.exact, [1.0; 16]);
        coded.forget();
        assert!(!coded.are_for(1.0));
        coded.prepare(&[f32::INFINITY; 16], 16, &[0.5; 16], 2.0);
        assert!(coded.scales[0].is_nan());
    }
}
