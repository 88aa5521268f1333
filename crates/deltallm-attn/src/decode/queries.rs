//! Queries for keys of 8 bits: times the steps of the channels, and rounded to 16 bits for the integer dot instructions.
//!
//! A query is `scale * code` with codes within +-32639. A score is off by at most `scale / 2 * sum |key code|`, about 3e-5 of its usual
//! size: as little as the rounding of f16 keys, and far less than what the thresholds allow. The sums themselves are
//! exact: a product is below 2^22, so [`MOST_SUMMED_CHANNELS`] of them stay below 2^31.

use deltallm_simd::math::nearest_bits;

/// Channels up to which the sums of products fit in 32 bits.
pub(crate) const MOST_SUMMED_CHANNELS: usize = 512;

/// The largest code: its high byte is 127, its low byte 127.
const LARGEST: f32 = 32639.0;

/// A query next to zero, none of whose numbers is as large, gets codes of zero: its scores are below 1e-30.
const LEAST: f32 = 1e-33;

/// Channels whose codes stand together: those of a mask word.
pub(crate) const WORD: usize = 64;

/// The codes of [`WORD`] channels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodedWord {
    pub(crate) codes: [i16; WORD],
    /// The same as `256 * high + low`, both signed bytes, four channels to a number.
    pub(crate) high: [i32; WORD / 4],
    pub(crate) low: [i32; WORD / 4],
    /// Sums of the codes of each half.
    pub(crate) sums: [i32; 2],
}

impl CodedWord {
    pub(crate) const ZERO: Self =
        Self { codes: [0; WORD], high: [0; WORD / 4], low: [0; WORD / 4], sums: [0; 2] };

    #[inline(always)]
    fn new(query: &[f32], inverse: f32) -> Self {
        let mut word = Self::ZERO;
        for (code, x) in word.codes.iter_mut().zip(query) {
            *code = nearest_bits(x * inverse) as i16;
        }
        for (i, four) in word.codes.chunks_exact(4).enumerate() {
            let (mut high, mut low) = ([0; 4], [0; 4]);
            for ((high, low), code) in high.iter_mut().zip(&mut low).zip(four) {
                *high = ((*code + 128) >> 8) as u8;
                *low = *code as u8;
            }
            (word.high[i], word.low[i]) = (i32::from_le_bytes(high), i32::from_le_bytes(low));
            word.sums[i / (WORD / 8)] += four.iter().map(|code| i32::from(*code)).sum::<i32>();
        }
        word
    }
}

/// The queries of a group for the 8-bit keys of one segment, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct CodedQueries {
    /// What they have been made for; `None` before the first block.
    prepared: Option<PreparedFor>,
    /// `[heads, channels]`, times the steps, as f32: see [`times_steps`](Self::times_steps).
    pub(crate) exact: Vec<f32>,
    /// `[heads, words]`.
    pub(crate) codes: Vec<CodedWord>,
    /// What a code of 1 is worth, `[heads]`; NaN where a query is infinite, which makes NaN of its scores.
    pub(crate) scales: Vec<f32>,
    /// The same with the factor that they were coded with.
    coded_scales: Vec<f32>,
}

/// The steps that [`CodedQueries`] are for.
#[derive(Debug, Clone, Copy)]
struct PreparedFor {
    /// What the steps were multiplied by when the queries were coded, and what the scales are for now.
    codes_factor: f32,
    scales_factor: f32,
    /// The least and the largest factor for which all numbers are normal that are not zero, so that the codes are the same.
    codes_valid_for: Option<[f32; 2]>,
}

impl CodedQueries {
    /// Other queries, or other keys.
    pub(crate) fn forget(&mut self) {
        self.prepared = None;
    }

    /// Whether they have been made for this factor.
    pub(crate) fn are_for(&self, factor: f32) -> bool {
        self.prepared.is_some_and(|prepared| prepared.scales_factor == factor)
    }

    /// Makes them for keys that are `code * (steps[channel] * factor)`. Channels without a step have the step 1.
    ///
    /// If they have been made for another factor, the codes are what they are, and only the scales change.
    #[inline(always)]
    pub(crate) fn prepare(&mut self, queries: &[f32], channels: usize, steps: &[f32], factor: f32) {
        if let Some(prepared) = &mut self.prepared
            && let Some([least, most]) = prepared.codes_valid_for
            && (least..=most).contains(&factor)
        {
            let ratio = factor / prepared.codes_factor;
            self.scales.iter_mut().zip(&self.coded_scales).for_each(|(scale, coded)| *scale = coded * ratio);
            prepared.scales_factor = factor;
            return;
        }
        self.times_steps(queries, channels, steps, factor);
        self.codes.clear();
        self.scales.clear();
        // The smallest and largest nonzero magnitude among steps and scaled queries. A query counts relative to `LEAST`, a step to the
        // smallest normal f32.
        let (mut least, mut most) = (f32::MAX, f32::MIN_POSITIVE);
        for query in self.exact.chunks_exact(channels) {
            let largest = query.iter().fold(0.0, |most: f32, q| most.max(q.abs()));
            let inverse = if largest >= LEAST { LARGEST / largest } else { 0.0 };
            self.codes.extend(query.chunks(WORD).map(|query| CodedWord::new(query, inverse)));
            self.scales.push(if largest <= f32::MAX { largest / LARGEST } else { f32::NAN });
            if largest != 0.0 {
                (least, most) = (least.min(largest * (f32::MIN_POSITIVE / LEAST)), most.max(largest));
            }
        }
        for step in steps.iter().filter(|step| **step != 0.0).map(|step| step * factor) {
            (least, most) = (least.min(step), most.max(step));
        }
        let normal = least >= f32::MIN_POSITIVE && most <= f32::MAX;
        // Not to the very ends: these are rounded.
        let codes_valid_for =
            normal.then(|| [factor * (2.0 * f32::MIN_POSITIVE / least), factor * (0.5 * f32::MAX / most)]);
        self.coded_scales.clone_from(&self.scales);
        self.prepared = Some(PreparedFor { codes_factor: factor, scales_factor: factor, codes_valid_for });
    }

    /// The queries times the steps.
    #[inline(always)]
    pub(crate) fn times_steps(&mut self, queries: &[f32], channels: usize, steps: &[f32], factor: f32) {
        self.exact.clear();
        self.exact.extend_from_slice(queries);
        for query in self.exact.chunks_exact_mut(channels) {
            for (q, step) in query.iter_mut().zip(steps) {
                let step = step * factor;
                // Any other step has codes of 0 only, and must not make NaN of them.
                *q = if (f32::MIN_POSITIVE..=f32::MAX).contains(&step) { *q * step } else { 0.0 };
            }
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
                assert_eq!(i32::from(codes.codes[i]), 256 * high[i] + low[i]);
                assert!((scale * f32::from(codes.codes[i]) - q).abs() <= 0.501 * scale, "{q}");
            }
            let sum = |half: &[i16]| half.iter().map(|code| i32::from(*code)).sum::<i32>();
            assert_eq!(codes.sums, [sum(&codes.codes[..32]), sum(&codes.codes[32..])]);
        }
    }

    #[test]
    fn queries_are_for_one_factor_and_an_infinite_one_is_not_lost() {
        let mut coded = CodedQueries::default();
        coded.prepare(&[2.0; 16], 16, &[0.5; 16], 1.0);
        assert!(coded.are_for(1.0) && !coded.are_for(2.0));
        assert_eq!(coded.exact, [1.0; 16]);
        let codes = coded.codes[0].codes;
        coded.prepare(&[2.0; 16], 16, &[0.5; 16], 3.0);
        assert_eq!((coded.codes[0].codes, coded.scales[0]), (codes, 3.0 / LARGEST));
        // A channel whose step is of no use with the one factor and with the other is.
        let steps: Vec<f32> = (0..16).map(|i| if i < 8 { 0.5 } else { 1e-37 }).collect();
        coded.forget();
        coded.prepare(&[2.0; 16], 16, &steps, 1e-3);
        assert_eq!(coded.exact[8..], [0.0; 8]);
        coded.prepare(&[2.0; 16], 16, &steps, 1e37);
        assert_eq!(coded.codes[0].codes[0], LARGEST as i16);
        assert_eq!(coded.exact[8..], [2.0; 8]);
        coded.forget();
        assert!(!coded.are_for(1.0));
        coded.prepare(&[f32::INFINITY; 16], 16, &[0.5; 16], 2.0);
        assert!(coded.scales[0].is_nan());
    }
}
