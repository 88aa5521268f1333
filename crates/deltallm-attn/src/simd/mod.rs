//! The micro-kernels, written once over `fearless_simd`'s vectors and compiled for every level.
//!
//! All of them work on a *tile*: queries side by side in the lanes of a vector. A matrix with one row per channel or
//! per key and one column per query lane is "lane-contiguous": `[rows, lanes]`. Reading order: [`matmul`] (both
//! products of attention), [`delta`] (the sparse product), [`softmax`], [`exp`].
//!
//! Faster kernels for one instruction set (dot products of 16 or 8 bits, fused skip tests) belong beside these files, and
//! are chosen in the methods of [`SimdLevel`].

pub(crate) mod decode;
mod delta;
mod exp;
mod filter;
mod matmul;
mod pairs;
mod prefetch;
mod softmax;
mod stream;
mod transpose;

use std::{fmt, str::FromStr};

use deltallm_core::ElementType;
use fearless_simd::{Level, dispatch, prelude::*};

use crate::{AttentionError, Precision};

#[doc(hidden)]
pub use exp::exp2;
pub(crate) use filter::{Filter, KeyCodes, QueryCodes};
pub(crate) use pairs::{PairKeys, PairQueries, PairValues, Pairs};
pub(crate) use stream::{KeyStream, KeyStreams, MOST_CHANNELS};

/// An instruction set that this machine has. A value of this type is the proof of it.
///
/// The environment variable `DELTALLM_SIMD` (`scalar`, `avx2`, `avx512`, `neon`) forces one.
///
/// ```
/// use deltallm_attn::{AttentionOptions, AttentionShape, SimdLevel};
///
/// // A result that is the same on every CPU, for a test.
/// let scalar: SimdLevel = "scalar".parse()?;
/// let options = AttentionOptions { simd: scalar, ..AttentionOptions::new(AttentionShape::new(2, 1, 8)?)? };
/// assert_eq!(options.simd.name(), "scalar");
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Clone, Copy)]
pub struct SimdLevel {
    name: &'static str,
    level: Level,
}

impl SimdLevel {
    /// All levels this machine has, slowest first. `scalar` is always there.
    pub fn available() -> Vec<Self> {
        let detected = Level::new();
        let mut levels = vec![Self { name: "scalar", level: Level::fallback() }];
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        {
            levels.extend(detected.as_avx2().map(|token| Self { name: "avx2", level: token.level() }));
            levels.extend(detected.as_avx512().map(|token| Self { name: "avx512", level: token.level() }));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(detected.as_neon().map(|token| Self { name: "neon", level: token.level() }));
        levels
    }

    /// The level `DELTALLM_SIMD` names, or else the best one.
    ///
    /// # Errors
    /// [`AttentionError::SimdLevel`] when the variable names a level this machine does not have.
    pub fn from_env() -> Result<Self, AttentionError> {
        match std::env::var("DELTALLM_SIMD") {
            Ok(name) => name.parse(),
            Err(_) => Ok(Self::best()),
        }
    }

    /// The fastest level this machine has.
    pub fn best() -> Self {
        let mut levels = Self::available();
        // Never empty: the list starts with `scalar`.
        levels.pop().unwrap_or(Self { name: "scalar", level: Level::fallback() })
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// As the vector library has it, for small operations beside attention.
    #[doc(hidden)]
    pub fn level(self) -> Level {
        self.level
    }

    /// Whether this level multiplies numbers of this precision; otherwise f32 takes their place.
    pub fn multiplies(self, precision: Precision) -> bool {
        precision == Precision::F32 || self.pairs(precision).is_some()
    }

    /// The 16-bit products of this precision, if this level has instructions for them (or is there for its answers and
    /// not for its speed).
    pub(crate) fn pairs(self, precision: Precision) -> Option<Pairs> {
        match (self.name, precision) {
            ("scalar", Precision::Int16) => Some(Pairs::portable(self.level)),
            #[cfg(target_arch = "x86_64")]
            ("avx512", Precision::Int16) => Pairs::avx512(self.level),
            #[cfg(target_arch = "aarch64")]
            ("neon", Precision::Bf16) => Pairs::neon(self.level),
            _ => None,
        }
    }

    /// The first pass over keys whose values may be skipped, if this level has the instructions that make it worth while (or
    /// is there for its answers).
    pub(crate) fn filter(self) -> Option<Filter> {
        match self.name {
            "scalar" => Some(Filter::portable(self.level)),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Filter::avx512(self.level),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Filter::avx2(self.level),
            #[cfg(target_arch = "aarch64")]
            "neon" => Filter::neon(self.level),
            _ => None,
        }
    }

    /// Whether keys are tested by their f32 scores through the deltas, even if there is a first pass: whether the sparse
    /// product, which needs a load for each FMA, takes less time than that and full scores of what comes through it. On AMD's
    /// Zen 4, where 512-bit FMAs are done in halves and loads keep up with them, it does (docs/results/attention.md).
    pub(crate) fn tests_through_deltas(self) -> bool {
        // Whether loads keep up with products, as on CPUs that do 512 bits in halves: AMD's. Only they have SSE4a.
        #[cfg(target_arch = "x86_64")]
        return self.name == "avx512" && is_x86_feature_detected!("sse4a");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// f32 lanes of a vector.
    pub(crate) fn lanes(self) -> usize {
        dispatch!(self.level, simd => width(simd))
    }

    /// `out[i][lane] = keys[picks[i]] . queries[..][lane]`: exact scores of some keys.
    ///
    /// `keys` is `[keys, head_dim]`, `queries` `[head_dim, lanes]`, `out` `[picks, lanes]`.
    pub(crate) fn scores(
        self,
        keys: &[f32],
        picks: &[usize],
        queries: &[f32],
        lanes: usize,
        out: &mut [f32],
    ) {
        dispatch!(self.level, simd => matmul::scores(simd, keys, picks, queries, lanes, out));
    }

    /// The same, for the keys that are above the threshold (`[lanes]`) of any lane: `kept` says which of the picks they are, and
    /// `out` begins with their scores.
    #[expect(clippy::too_many_arguments, reason = "the operands of scores, and what is to survive")]
    pub(crate) fn scores_above(
        self,
        keys: &[f32],
        picks: &[usize],
        queries: &[f32],
        lanes: usize,
        thresholds: &[f32],
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) {
        dispatch!(self.level, simd => matmul::scores_above(simd, keys, picks, queries, lanes, thresholds, out, kept));
    }

    /// The scores of the keys of a block from the key `skip` on, as many as `out` has room for.
    pub(crate) fn delta_scores(
        self,
        stream: KeyStream,
        skip: usize,
        queries: &[f32],
        lanes: usize,
        out: &mut [f32],
    ) {
        dispatch!(self.level, simd => delta::scores(simd, stream, skip, queries, lanes, out));
    }

    /// The scores of those of these keys that are above the threshold in any lane, packed into the first rows of `out`, and
    /// their numbers, counted from `skip`. False, and nothing done, for a number of lanes that has no kernel.
    pub(crate) fn delta_survivors(
        self,
        stream: KeyStream,
        skip: usize,
        queries: &[f32],
        thresholds: &[f32],
        out: &mut [f32],
        kept: &mut Vec<usize>,
    ) -> bool {
        dispatch!(self.level, simd => delta::survivors(simd, stream, skip, queries, thresholds, out, kept))
    }

    /// Whether none of the numbers is infinite or NaN.
    pub(crate) fn all_finite(self, numbers: &[f32]) -> bool {
        dispatch!(self.level, _simd => ElementType::F32.holds(numbers))
    }

    /// `out[column * out_stride + row] = rows[row * stride + column] * factor` for `count` rows of `columns` columns.
    pub(crate) fn transpose(
        self,
        rows: &[f32],
        stride: usize,
        [count, columns]: [usize; 2],
        factor: f32,
        out: &mut [f32],
        out_stride: usize,
    ) {
        let shape = [count, columns];
        dispatch!(self.level, simd => transpose::transpose(simd, rows, stride, shape, factor, out, out_stride));
    }

    /// Sets the scores to -inf of the rows outside of `starts[lane]..ends[lane]`.
    pub(crate) fn mask(self, scores: &mut [f32], starts: &[f32], ends: &[f32]) {
        dispatch!(self.level, simd => softmax::mask(simd, scores, starts, ends));
    }

    /// `out[channel][lane] += sum over i of values[picks[i]][channel] * weights[i][lane]`.
    ///
    /// `values` is `[keys, head_dim]`, `weights` `[picks, lanes]`, `out` `[head_dim, lanes]`.
    pub(crate) fn accumulate(
        self,
        values: &[f32],
        picks: &[usize],
        weights: &[f32],
        lanes: usize,
        out: &mut [f32],
    ) {
        dispatch!(self.level, simd => matmul::accumulate(simd, values, picks, weights, lanes, out));
    }

    /// One step of the online softmax over a block of scores `[rows, lanes]` in units of ln 2, which become weights; see
    /// [`softmax::update`]. Returns whether `rescale` has an entry other than one.
    pub(crate) fn softmax(
        self,
        scores: &mut [f32],
        lanes: usize,
        max: &mut [f32],
        sum: &mut [f32],
        rescale: &mut [f32],
    ) -> bool {
        dispatch!(self.level, simd => softmax::update(simd, scores, lanes, max, sum, rescale))
    }

    /// `rows[..][lane] *= factors[lane]`.
    pub(crate) fn rescale(self, rows: &mut [f32], factors: &[f32]) {
        dispatch!(self.level, simd => softmax::rescale(simd, rows, factors));
    }

    /// `score = cap * tanh(score / cap)`, from nats to units of ln 2.
    pub(crate) fn softcap(self, scores: &mut [f32], cap: f32) {
        dispatch!(self.level, simd => softmax::softcap(simd, scores, cap));
    }

    /// Moves the rows of scores that are above the threshold (`[lanes]`) of any lane to the front; `kept` becomes their numbers.
    pub(crate) fn keep_above(self, scores: &mut [f32], thresholds: &[f32], kept: &mut Vec<usize>) {
        kept.clear();
        dispatch!(self.level, simd => softmax::keep_above(simd, scores, thresholds, 0, kept));
    }
}

/// Whether a level has registers for large tiles. Not so the scalar one (nor those between it and AVX2, which are not
/// used): unrolled for it, they are of no use and take minutes to compile.
#[inline(always)]
const fn large_tiles<S: Simd>() -> bool {
    cfg!(target_arch = "aarch64") || S::f32s::LEN > 4
}

#[inline(always)]
fn width<S: Simd>(_: S) -> usize {
    S::f32s::LEN
}

impl fmt::Debug for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for SimdLevel {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl FromStr for SimdLevel {
    type Err = AttentionError;

    fn from_str(name: &str) -> Result<Self, AttentionError> {
        let levels = Self::available();
        levels.iter().find(|level| level.name == name).copied().ok_or_else(|| AttentionError::SimdLevel {
            expected: levels.iter().map(|level| level.name).collect::<Vec<_>>().join(", "),
            got: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that look random.
    pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn tested_scores_are_the_scores_that_pass() {
        let (head_dim, lanes) = (20, 96);
        let (keys, queries) = (numbers(64 * head_dim, 1), numbers(head_dim * lanes, 2));
        for level in SimdLevel::available() {
            for count in [0, 1, 3, 23, 24, 25, 48, 61] {
                let picks: Vec<usize> = (0..count).map(|i| i + i / 30).collect();
                let mut all = vec![0.0; count * lanes];
                level.scores(&keys, &picks, &queries, lanes, &mut all);
                // None passes, some do, all do.
                for limit in [1e30, 4.0, -1e30] {
                    let thresholds = vec![limit; lanes];
                    let (mut some, mut kept) = (vec![0.0; count * lanes], Vec::new());
                    level.scores_above(&keys, &picks, &queries, lanes, &thresholds, &mut some, &mut kept);
                    let pass = |row: &usize| all[row * lanes..][..lanes].iter().any(|score| *score > limit);
                    let expected: Vec<usize> = (0..count).filter(pass).collect();
                    assert_eq!(kept, expected, "{level}, {count} keys, {limit}");
                    for (i, row) in kept.iter().enumerate() {
                        assert_eq!(
                            some[i * lanes..][..lanes],
                            all[row * lanes..][..lanes],
                            "{level}, {count} keys"
                        );
                    }
                    assert!(count < 61 || limit != 4.0 || (1..count).contains(&kept.len()), "{}", kept.len());
                    assert!(limit == 4.0 || kept.len() == if limit > 0.0 { 0 } else { count });
                }
            }
        }
    }

    #[test]
    fn levels_are_found_by_name() {
        for level in SimdLevel::available() {
            assert_eq!(level.name().parse::<SimdLevel>().unwrap(), level);
        }
        let error = "sse9".parse::<SimdLevel>().unwrap_err().to_string();
        assert!(error.contains("sse9") && error.contains("scalar"), "{error}");
    }
}
