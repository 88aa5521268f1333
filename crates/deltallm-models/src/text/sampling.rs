//! Choosing the next token from logits.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Why a sampler could not be made, or could not choose.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A setting outside its range.
    #[error("`{field}`: expected {expected}, got {got}")]
    InvalidConfig {
        /// The setting.
        field: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        got: f32,
    },
    /// No logits to choose from.
    #[error("empty logits: expected one logit per token, got 0")]
    EmptyLogits,
    /// A logit that is not a number.
    #[error("logit of token {token}: expected a number, got NaN")]
    NanLogit {
        /// The token.
        token: usize,
    },
    /// Every token is masked.
    #[error("expected at least one logit above -inf, got {logits} masked ones")]
    AllMasked {
        /// How many logits there are.
        logits: usize,
    },
    /// A token of the history that has no logit.
    #[error("token history: expected ids below {vocab_size}, got {token}")]
    HistoryOutOfRange {
        /// The token.
        token: u32,
        /// How many logits there are.
        vocab_size: usize,
    },
}

/// How tokens are chosen: greedily, unless settings say otherwise. Filters apply in the order of the fields.
///
/// ```
/// use deltallm_models::SamplerConfig;
///
/// let config = SamplerConfig::default().with_temperature(0.7).with_top_k(40).with_seed(1);
/// assert_eq!((config.temperature, config.top_p), (0.7, 1.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SamplerConfig {
    /// Divides the logits of tokens in the history if positive, multiplies them if negative (CTRL, arXiv
    /// 1909.05858, section 4.1). Above 0; 1 is off.
    pub repetition_penalty: f32,
    /// Divides the logits. 0 or more, finite; 0 is greedy: the first of the highest logits.
    pub temperature: f32,
    /// Keeps this many of the highest logits; on ties the lower ids. 0 is off.
    pub top_k: usize,
    /// Keeps the fewest most probable tokens whose probabilities sum to at least this (arXiv 1904.09751). In
    /// (0, 1]; 1 is off.
    pub top_p: f32,
    /// Keeps tokens at least this many times as probable as the most probable one (arXiv 2407.01082). In [0,
    /// 1]; 0 is off.
    pub min_p: f32,
    /// The same seed and logits give the same tokens, on every machine with the same `exp`.
    pub seed: u64,
}

impl Default for SamplerConfig {
    /// Greedy.
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// One setting changed. What is out of its range is refused by [`Sampler::new`].
impl SamplerConfig {
    /// With this [`repetition_penalty`](Self::repetition_penalty).
    #[must_use]
    pub fn with_repetition_penalty(self, repetition_penalty: f32) -> Self {
        Self { repetition_penalty, ..self }
    }

    /// With this [`temperature`](Self::temperature).
    #[must_use]
    pub fn with_temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// With this [`top_k`](Self::top_k).
    #[must_use]
    pub fn with_top_k(self, top_k: usize) -> Self {
        Self { top_k, ..self }
    }

    /// With this [`top_p`](Self::top_p).
    #[must_use]
    pub fn with_top_p(self, top_p: f32) -> Self {
        Self { top_p, ..self }
    }

    /// With this [`min_p`](Self::min_p).
    #[must_use]
    pub fn with_min_p(self, min_p: f32) -> Self {
        Self { min_p, ..self }
    }

    /// With this [`seed`](Self::seed).
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

impl SamplerConfig {
    fn validate(&self) -> Result<(), SamplingError> {
        let check = |field, value: f32, ok: bool, expected| match ok {
            true => Ok(()),
            false => Err(SamplingError::InvalidConfig { field, expected, got: value }),
        };
        let Self { repetition_penalty: penalty, temperature, top_p, min_p, .. } = *self;
        check(
            "repetition_penalty",
            penalty,
            penalty.is_finite() && penalty > 0.0,
            "a finite number above 0",
        )?;
        check(
            "temperature",
            temperature,
            temperature.is_finite() && temperature >= 0.0,
            "a finite number of at least 0",
        )?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number in (0, 1]")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number in [0, 1]")
    }
}

/// A token that may be chosen: its logit at first, and then its weight (probability times a constant).
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    value: f32,
}

/// Chooses tokens by a [`SamplerConfig`], with its own random numbers.
///
/// ```
/// use deltallm_models::{Sampler, SamplerConfig};
///
/// let mut greedy = Sampler::new(SamplerConfig::default())?;
/// assert_eq!(greedy.sample(&[0.1, 2.0, -1.0])?, 1);
/// let mut two_best = Sampler::new(SamplerConfig::default().with_temperature(1.0).with_top_k(2).with_seed(7))?;
/// assert_ne!(two_best.sample(&[0.1, 2.0, -1.0])?, 2);
/// # Ok::<(), deltallm_models::SamplingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler at the start of its random numbers.
    ///
    /// # Errors
    /// [`SamplingError::InvalidConfig`] naming the first setting outside its range.
    pub fn new(config: SamplerConfig) -> Result<Self, SamplingError> {
        config.validate()?;
        Ok(Self { config, rng: ChaCha8Rng::seed_from_u64(config.seed), candidates: Vec::new() })
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Chooses a token from `logits` (`[vocabulary]`, natural-log scale), without a repetition penalty.
    ///
    /// A logit of -inf is never chosen. Logits of +inf share all the probability between them.
    ///
    /// # Errors
    /// Empty logits, a NaN, or all -inf. An error draws no random number.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        self.sample_after(logits, &[])
    }

    /// Chooses a token from `logits` (`[vocabulary]`); tokens in `history` bear the repetition penalty, once
    /// each.
    ///
    /// # Errors
    /// As [`sample`](Self::sample), and an id in `history` that has no logit.
    pub fn sample_after(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplingError> {
        if logits.is_empty() {
            return Err(SamplingError::EmptyLogits);
        }
        if let Some(token) = logits.iter().position(|logit| logit.is_nan()) {
            return Err(SamplingError::NanLogit { token });
        }
        self.candidates.clear();
        self.candidates.extend((0u32..).zip(logits).map(|(token, &value)| Candidate { token, value }));
        self.penalize(logits, history)?;
        self.candidates.retain(|candidate| candidate.value > f32::NEG_INFINITY);

        let Some(best) = self.candidates.iter().copied().reduce(|a, b| if b.value > a.value { b } else { a })
        else {
            return Err(SamplingError::AllMasked { logits: logits.len() });
        };
        if self.config.temperature == 0.0 {
            return Ok(best.token);
        }
        if best.value == f32::INFINITY {
            self.candidates.retain(|candidate| candidate.value == f32::INFINITY);
        }
        self.keep_top_k();
        self.weigh(best.value);
        self.keep_top_p();
        // The most probable token has weight 1, so weights compare with `min_p` as they are.
        let min_p = self.config.min_p;
        self.candidates.retain(|candidate| candidate.value >= min_p);
        Ok(self.draw())
    }

    fn penalize(&mut self, logits: &[f32], history: &[u32]) -> Result<(), SamplingError> {
        let penalty = self.config.repetition_penalty;
        for &token in history {
            let Some(&logit) = logits.get(token as usize) else {
                return Err(SamplingError::HistoryOutOfRange { token, vocab_size: logits.len() });
            };
            // From the given logit, not the candidate's: a token that occurs twice is penalised once.
            self.candidates[token as usize].value =
                if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        Ok(())
    }

    fn keep_top_k(&mut self) {
        let k = self.config.top_k;
        if k > 0 && k < self.candidates.len() {
            self.candidates.select_nth_unstable_by(k - 1, by_value_then_token);
            self.candidates.truncate(k);
        }
    }

    /// Turns logits into weights relative to `best`.
    fn weigh(&mut self, best: f32) {
        let temperature = self.config.temperature;
        for candidate in &mut self.candidates {
            // Infinite logits are all equal here, and inf - inf is not a number.
            let below = if candidate.value == best { 0.0 } else { candidate.value - best };
            candidate.value = (below / temperature).exp();
        }
    }

    /// Sorts by weight only as many candidates as the nucleus takes, in chunks that double.
    fn keep_top_p(&mut self) {
        if self.config.top_p >= 1.0 {
            return;
        }
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.value)).sum();
        let wanted = f64::from(self.config.top_p) * total;
        let (mut sum, mut sorted, mut chunk) = (0.0, 0, 64);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let size = chunk.min(rest.len());
            if size < rest.len() {
                rest.select_nth_unstable_by(size - 1, by_value_then_token);
            }
            rest[..size].sort_unstable_by(by_value_then_token);
            for (index, candidate) in rest[..size].iter().enumerate() {
                sum += f64::from(candidate.value);
                if sum >= wanted {
                    self.candidates.truncate(sorted + index + 1);
                    return;
                }
            }
            sorted += size;
            chunk *= 2;
        }
    }

    /// Draws one of the candidates by weight. There is at least one: every filter keeps the most probable
    /// token.
    fn draw(&mut self) -> u32 {
        // In the order of ids, so that the result does not depend on how the filters left them.
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        let total: f64 = self.candidates.iter().map(|candidate| f64::from(candidate.value)).sum();
        let mut left = self.rng.random::<f64>() * total;
        let mut chosen = self.candidates[0].token;
        for candidate in self.candidates.iter().filter(|candidate| candidate.value > 0.0) {
            chosen = candidate.token;
            left -= f64::from(candidate.value);
            if left < 0.0 {
                break;
            }
        }
        chosen
    }
}

/// Highest value first, and the lower id on ties.
fn by_value_then_token(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.value.total_cmp(&a.value).then(a.token.cmp(&b.token))
}
