//! Perplexity, and how far one set of next-token distributions is from another.

use std::{borrow::Cow, ops::AddAssign};

use deltallm_core::HeadSparsity;
use deltallm_simd::Isa;
use ndarray::{ArrayView2, Axis};

use super::{error::CalibrationError, logits, parallel::map};
use crate::AttentionError;

/// How a model did on one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of the probability of the token that came.
    pub log_likelihood: f64,
    /// The token that was most probable (the first of several).
    pub top: usize,
    /// Logarithm of the sum of the exponentials of all logits.
    log_sum: f64,
}

/// Scores the tokens `next`, of which `logits` (`[rows, vocab_size]`) are the predictions; a row more is checked and left out.
/// Logarithms are right to some 1e-6.
///
/// # Errors
/// [`CalibrationError::Attention`] for fewer rows than tokens. [`CalibrationError::NoSuchToken`] for a token that has no logit.
/// [`CalibrationError::Logit`] for logits of which no probabilities can be made, and for a token that came though its logit is
/// negative infinity, which is that of a token that cannot come.
pub fn score_rows(logits: ArrayView2<f32>, next: &[u32]) -> Result<Vec<TokenScore>, CalibrationError> {
    if logits.nrows() < next.len() {
        let (input, dimension, expected, got) = ("logits", "rows (at least)", next.len(), logits.nrows());
        return Err(AttentionError::Shape { input, dimension, expected, got }.into());
    }
    let rows: Vec<usize> = (0..logits.nrows()).collect();
    let scores = map(&rows, |&row| score_row(row, &contiguous(logits, row), next.get(row).copied()));
    scores.into_iter().filter_map(Result::transpose).collect()
}

/// The score of the token that came after a row, if one did.
fn score_row(row: usize, logits: &[f32], next: Option<u32>) -> Result<Option<TokenScore>, CalibrationError> {
    let isa = Isa::best();
    let (top, max) = logits::largest(isa, logits);
    // All of them, with no early end: whole vectors at a time.
    if !logits.iter().fold(max > f32::NEG_INFINITY, |good, x| good & (*x < f32::INFINITY)) {
        let bad = logits.iter().find(|x| x.is_nan() || **x == f32::INFINITY);
        return Err(CalibrationError::Logit { row, got: *bad.unwrap_or(&max) });
    }
    let Some(token) = next else {
        return Ok(None);
    };
    let no_such_token = CalibrationError::NoSuchToken { expected: logits.len(), got: token };
    let logit = *logits.get(token as usize).ok_or(no_such_token)?;
    if logit == f32::NEG_INFINITY {
        return Err(CalibrationError::Logit { row, got: logit });
    }
    let log_sum = logits::log_sum_exp(isa, logits, max);
    Ok(Some(TokenScore { log_likelihood: f64::from(logit) - log_sum, top, log_sum }))
}

/// A row of logits, copied where it does not lie in one piece.
fn contiguous(logits: ArrayView2<'_, f32>, row: usize) -> Cow<'_, [f32]> {
    let row = logits.index_axis_move(Axis(0), row);
    row.to_slice().map_or_else(|| Cow::Owned(row.to_vec()), Cow::Borrowed)
}

/// Sums over the scored tokens of one kernel: its perplexity.
///
/// ```
/// use deltallm_attn::calibration::{Perplexity, score_rows};
/// use ndarray::Array2;
///
/// // Logits of 5 tokens from a vocabulary of 7, all alike.
/// let mut perplexity = Perplexity::default();
/// perplexity.add(&score_rows(Array2::zeros((5, 7)).view(), &[0, 1, 2, 6])?);
/// assert_eq!(perplexity.tokens(), 4); // nothing follows the fifth
/// assert!((perplexity.value() - 7.0).abs() < 1e-5);
/// # Ok::<(), deltallm_attn::calibration::CalibrationError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Perplexity {
    log_likelihood: f64,
    log_likelihood_squared: f64,
    tokens: usize,
    /// Sparsity of all layers, heads and windows.
    pub sparsity: HeadSparsity,
}

impl Perplexity {
    /// Adds scored tokens.
    pub fn add(&mut self, scores: &[TokenScore]) {
        self.log_likelihood += scores.iter().map(|score| score.log_likelihood).sum::<f64>();
        self.log_likelihood_squared += scores.iter().map(|score| score.log_likelihood.powi(2)).sum::<f64>();
        self.tokens += scores.len();
    }

    /// `exp` of the mean negative log-likelihood; not a number if no token was scored.
    pub fn value(&self) -> f64 {
        (-self.log_likelihood / self.tokens as f64).exp()
    }

    /// Standard error of [`value`](Self::value), tokens taken as independent: that of the mean log-likelihood times the
    /// perplexity.
    pub fn standard_error(&self) -> f64 {
        self.value() * mean_and_error(self.log_likelihood, self.log_likelihood_squared, self.tokens).1
    }

    /// Tokens scored.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl AddAssign for Perplexity {
    /// Adds the sums of other tokens.
    fn add_assign(&mut self, other: Self) {
        self.log_likelihood += other.log_likelihood;
        self.log_likelihood_squared += other.log_likelihood_squared;
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.sparsity += other.sparsity;
    }
}

/// Sums over the scored tokens of a kernel beside dense attention: how far its predictions are from the dense ones.
///
/// ```
/// use deltallm_attn::calibration::{Comparison, score_rows};
/// use ndarray::array;
///
/// let (dense, other) = (array![[0.0, 0.0]], array![[0.0, 1.0]]);
/// let (dense_scores, scores) = (score_rows(dense.view(), &[0])?, score_rows(other.view(), &[0])?);
/// let mut comparison = Comparison::default();
/// comparison.add((dense.view(), &dense_scores), (other.view(), &scores));
/// assert_eq!(comparison.flips(), 1);
/// assert!((comparison.kl() - 0.12).abs() < 0.001);
/// # Ok::<(), deltallm_attn::calibration::CalibrationError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Comparison {
    kl: f64,
    difference: f64,
    difference_squared: f64,
    flips: usize,
    tokens: usize,
}

impl Comparison {
    /// Adds the scored tokens of a chunk: logits (`[rows, vocab_size]`) and [scores](score_rows), of dense attention first. Where one
    /// has more rows than the other, the rest is left out.
    pub fn add(
        &mut self,
        (dense_logits, dense): (ArrayView2<f32>, &[TokenScore]),
        (logits, scores): (ArrayView2<f32>, &[TokenScore]),
    ) {
        let rows = [scores.len(), dense.len(), logits.nrows(), dense_logits.nrows()];
        let rows: Vec<usize> = (0..rows.into_iter().min().unwrap_or(0)).collect();
        let isa = Isa::best();
        let row = |&i: &usize| {
            let (d, o) = (contiguous(dense_logits, i), contiguous(logits, i));
            logits::divergence(isa, (&d, dense[i].log_sum), (&o, scores[i].log_sum))
        };
        // Collected before they are summed: the order of the sum must not depend on the threads.
        self.kl += map(&rows, row).iter().sum::<f64>();
        for (dense, score) in dense.iter().zip(scores).take(rows.len()) {
            let difference = score.log_likelihood - dense.log_likelihood;
            self.difference += difference;
            self.difference_squared += difference * difference;
            self.flips += usize::from(score.top != dense.top);
        }
        self.tokens += rows.len();
    }

    /// Mean KL(dense || this), in nats; not a number if no token was scored.
    pub fn kl(&self) -> f64 {
        self.kl / self.tokens as f64
    }

    /// Tokens whose most probable prediction is another one than with dense attention.
    pub fn flips(&self) -> usize {
        self.flips
    }

    /// Share of tokens whose most probable prediction is the same.
    pub fn top1_agreement(&self) -> f64 {
        1.0 - self.flips as f64 / self.tokens as f64
    }

    /// Mean difference in log-likelihood to dense attention, in nats, and its standard error (tokens taken as independent).
    pub fn log_likelihood_difference(&self) -> (f64, f64) {
        mean_and_error(self.difference, self.difference_squared, self.tokens)
    }
}

impl AddAssign for Comparison {
    /// Adds the sums of other tokens.
    fn add_assign(&mut self, other: Self) {
        self.kl += other.kl;
        self.difference += other.difference;
        self.difference_squared += other.difference_squared;
        self.flips = self.flips.saturating_add(other.flips);
        self.tokens = self.tokens.saturating_add(other.tokens);
    }
}

/// The mean of `n` numbers and its standard error, from their sum and the sum of their squares.
fn mean_and_error(sum: f64, squares: f64, n: usize) -> (f64, f64) {
    let n = n as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    (mean, (variance / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn logs(probabilities: Array2<f32>) -> Array2<f32> {
        // A constant added to all logits changes nothing.
        probabilities.mapv(|p| p.ln() + 3.0)
    }

    #[test]
    fn a_uniform_model_has_the_perplexity_of_its_vocabulary() {
        let mut perplexity = Perplexity::default();
        perplexity.add(&score_rows(Array2::zeros((5, 7)).view(), &[0, 1, 2, 6]).unwrap());
        assert_eq!(perplexity.tokens(), 4); // the fifth row predicts nothing that came
        assert!((perplexity.value() - 7.0).abs() < 1e-5);
    }

    #[test]
    fn perplexity_is_the_inverse_geometric_mean_probability() {
        let logits = logs(array![[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]);
        let scores = score_rows(logits.view(), &[1, 2]).unwrap();
        let mut perplexity = Perplexity::default();
        perplexity.add(&scores);
        assert!((perplexity.value() - (0.25_f64 * 0.8).powf(-0.5)).abs() < 1e-6);
        assert_eq!([scores[0].top, scores[1].top], [0, 2]);
        // The two log-likelihoods lie symmetrically about their mean: half their distance is its standard error.
        let error = perplexity.value() * (0.8_f64 / 0.25).ln() / 2.0;
        assert!((perplexity.standard_error() - error).abs() < 1e-6);
    }

    #[test]
    fn sums_can_be_added_later() {
        let logits = logs(array![[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]);
        let scores = score_rows(logits.view(), &[1, 2]).unwrap();
        let mut whole = Perplexity::default();
        whole.add(&scores);
        let mut parts = [Perplexity::default(); 2];
        parts.iter_mut().zip(scores.chunks(1)).for_each(|(part, scores)| part.add(scores));
        let [mut sum, second] = parts;
        sum += second;
        assert_eq!(sum, whole);
    }

    #[test]
    fn the_comparison_with_itself_is_nothing() {
        let logits = logs(array![[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]);
        let scores = score_rows(logits.view(), &[1, 2]).unwrap();
        let mut comparison = Comparison::default();
        comparison.add((logits.view(), &scores), (logits.view(), &scores));
        assert_eq!((comparison.kl(), comparison.flips(), comparison.top1_agreement()), (0.0, 0, 1.0));
        assert_eq!(comparison.log_likelihood_difference(), (0.0, 0.0));
    }

    #[test]
    fn divergence_by_hand() {
        let dense = logs(array![[0.5, 0.5], [0.5, 0.5]]);
        let other = logs(array![[0.25, 0.75], [0.5, 0.5]]);
        let scores = [&dense, &other].map(|logits| score_rows(logits.view(), &[0, 0]).unwrap());
        let mut comparison = Comparison::default();
        comparison.add((dense.view(), &scores[0]), (other.view(), &scores[1]));
        let expected = (0.5 * 2_f64.ln() + 0.5 * (2_f64 / 3.0).ln()) / 2.0;
        assert!((comparison.kl() - expected).abs() < 1e-7);
        assert_eq!((comparison.flips(), comparison.top1_agreement()), (1, 0.5));
        let (mean, error) = comparison.log_likelihood_difference();
        // The differences are -ln 2 and 0: mean and standard error are both ln 2 / 2 in magnitude.
        assert!((mean + 2_f64.ln() / 2.0).abs() < 1e-6 && (error - 2_f64.ln() / 2.0).abs() < 1e-6);
    }

    #[test]
    fn impossible_tokens_do_not_make_nan() {
        let dense = array![[0.0, f32::NEG_INFINITY]];
        let scores = score_rows(dense.view(), &[0]).unwrap();
        let mut comparison = Comparison::default();
        comparison.add((dense.view(), &scores), (dense.view(), &scores));
        assert_eq!(comparison.kl(), 0.0);
    }

    #[test]
    fn tokens_without_a_logit_and_logits_that_are_no_numbers_are_refused() {
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        for token in [2, u32::MAX] {
            let error = score_rows(array![[0.0, 1.0]].view(), &[token]).unwrap_err();
            assert!(matches!(error, CalibrationError::NoSuchToken { expected: 2, .. }), "{error}");
        }
        let error = score_rows(array![[0.0, 1.0]].view(), &[0, 0]).unwrap_err().to_string();
        assert_eq!(error, "logits: expected rows (at least) = 2, got 1");
        for (logits, bad_row) in [
            (array![[0.0, nan], [1.0, 0.0]], 0),
            (array![[0.0, 1.0], [nan, 0.0]], 1), // a row whose next token is not known
            (array![[0.0, 1.0], [infinity, 0.0]], 1),
            (array![[0.0, 1.0], [-infinity, -infinity]], 1),
            (array![[0.0, -infinity], [1.0, 0.0]], 0), // it cannot come, and did
        ] {
            let error = score_rows(logits.view(), &[1]).unwrap_err();
            assert!(matches!(error, CalibrationError::Logit { row, .. } if row == bad_row), "{error}");
        }
        let certain = score_rows(array![[-infinity, 1.0]].view(), &[1]).unwrap()[0];
        assert!(certain.log_likelihood.abs() < 1e-6);
    }
}
