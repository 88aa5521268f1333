//! Text on which settings are scored against dense attention.

use std::error::Error;

use deltallm_core::SparsityStats;
use ndarray::Array2;

use super::{
    error::CalibrationError,
    perplexity::{Comparison, Perplexity, TokenScore, score_rows},
    score::Score,
};
use crate::AttentionError;

/// Windows of text that nothing was calibrated on, with what dense attention predicts for them.
///
/// ```
/// use deltallm_attn::{SparsityStats, calibration::{CalibrationError, HeldOutText}};
/// use ndarray::array;
///
/// // Three tokens of a vocabulary of two, and the logits that a model with dense attention gives after each.
/// let mut text = HeldOutText::new();
/// text.add(&[0, 1, 1], array![[0.0, 2.0], [0.0, 1.0], [0.5, 0.0]])?;
///
/// // Another attention predicts nearly the same. The model has one layer, whose kernel was never asked.
/// let score = text.score(|tokens| -> Result<_, CalibrationError> {
///     assert_eq!(tokens, [0, 1, 1]);
///     Ok((array![[0.0, 2.0], [0.0, 1.1], [0.5, 0.0]], vec![SparsityStats::default()]))
/// })?;
/// assert_eq!((score.tokens, score.top1_agreement), (2, 1.0));
/// assert!(score.kl > 0.0 && score.kl < 0.01);
/// # Ok::<(), CalibrationError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct HeldOutText {
    windows: Vec<Window>,
    dense: Perplexity,
}

#[derive(Debug, Clone)]
struct Window {
    tokens: Vec<u32>,
    /// `[tokens, vocab_size]`.
    logits: Array2<f32>,
    scores: Vec<TokenScore>,
}

impl HeldOutText {
    /// No text yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a window: its tokens, and the logits `[tokens, vocab_size]` that the model with dense attention gives after each of
    /// them. They stay in memory.
    ///
    /// # Errors
    /// [`CalibrationError::Attention`] for fewer than two tokens, or another number of rows than of tokens; and what
    /// [`score_rows`] refuses.
    pub fn add(&mut self, tokens: &[u32], logits: Array2<f32>) -> Result<(), CalibrationError> {
        let wrong = |input, dimension, expected, got| {
            Err(AttentionError::Shape { input, dimension, expected, got }.into())
        };
        if tokens.len() < 2 {
            return wrong("held-out window", "tokens (at least)", 2, tokens.len());
        }
        if logits.nrows() != tokens.len() {
            return wrong("logits", "rows", tokens.len(), logits.nrows());
        }
        // The first token follows nothing, so that no score is asked for it.
        if tokens[0] as usize >= logits.ncols() {
            return Err(CalibrationError::NoSuchToken { expected: logits.ncols(), got: tokens[0] });
        }
        let scores = score_rows(logits.view(), &tokens[1..])?;
        self.dense.add(&scores);
        self.windows.push(Window { tokens: tokens.to_vec(), logits, scores });
        Ok(())
    }

    /// Perplexity of dense attention; not a number without a window.
    pub fn perplexity(&self) -> f64 {
        self.dense.value()
    }

    /// Scores another attention. `run` reads a window, beginning with empty caches, and returns its logits `[tokens, vocab_size]`
    /// and the [statistics](crate::AttentionKernel::stats) of every layer's kernel.
    ///
    /// # Errors
    /// [`CalibrationError::Engine`] with what `run` fails with; [`CalibrationError::Attention`] for logits of another shape than
    /// the dense ones, and for layers or heads whose number changes from window to window; and what [`score_rows`] refuses.
    pub fn score<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        run: impl FnMut(&[u32]) -> Result<(Array2<f32>, Vec<SparsityStats>), E>,
    ) -> Result<Score, CalibrationError> {
        Ok(self.compare(run)?.0)
    }

    /// The same, and the sums that the score is made of.
    ///
    /// # Errors
    /// As above.
    pub fn compare<E: Into<Box<dyn Error + Send + Sync>>>(
        &self,
        mut run: impl FnMut(&[u32]) -> Result<(Array2<f32>, Vec<SparsityStats>), E>,
    ) -> Result<(Score, Comparison), CalibrationError> {
        let (mut perplexity, mut comparison) = (Perplexity::default(), Comparison::default());
        let mut layers: Vec<SparsityStats> = Vec::new();
        for window in &self.windows {
            let (logits, stats) =
                run(&window.tokens).map_err(|error| CalibrationError::Engine(error.into()))?;
            let wrong =
                |input, dimension, expected, got| AttentionError::Shape { input, dimension, expected, got };
            for (dimension, expected, got) in [
                ("rows", window.logits.nrows(), logits.nrows()),
                ("columns", window.logits.ncols(), logits.ncols()),
            ] {
                if expected != got {
                    return Err(wrong("logits", dimension, expected, got).into());
                }
            }
            if layers.is_empty() {
                layers.resize(stats.len(), SparsityStats::default());
            }
            if stats.len() != layers.len() {
                return Err(wrong("statistics", "layers", layers.len(), stats.len()).into());
            }
            for (sum, stats) in layers.iter_mut().zip(&stats) {
                sum.merge(stats)?;
            }
            let scores = score_rows(logits.view(), &window.tokens[1..])?;
            perplexity.add(&scores);
            comparison.add((window.logits.view(), &window.scores), (logits.view(), &scores));
        }
        let score = Score {
            tokens: perplexity.tokens(),
            perplexity_dense: self.dense.value(),
            perplexity_change: perplexity.value() / self.dense.value() - 1.0,
            kl: comparison.kl(),
            top1_agreement: comparison.top1_agreement(),
            layers,
        };
        Ok((score, comparison))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn logits_that_are_no_numbers_are_refused_and_impossible_tokens_are_not() {
        let (good, nan, infinity) = (array![[0.0, 1.0], [1.0, f32::NEG_INFINITY]], f32::NAN, f32::INFINITY);
        let stats = || vec![SparsityStats::default()];
        let mut text = HeldOutText::new();
        text.add(&[0, 1], good.clone()).unwrap();
        let score = text.score(|_| Ok::<_, CalibrationError>((good.clone(), stats()))).unwrap();
        assert_eq!((score.kl, score.top1_agreement), (0.0, 1.0));
        let perplexity = text.perplexity();
        for bad in [array![[0.0, nan], [1.0, 0.0]], array![[0.0, 1.0], [infinity, 0.0]]] {
            let error = text.add(&[0, 1], bad.clone()).unwrap_err();
            assert!(matches!(error, CalibrationError::Logit { .. }), "{error}");
            let error = text.score(|_| Ok::<_, CalibrationError>((bad.clone(), stats()))).unwrap_err();
            assert!(matches!(error, CalibrationError::Logit { .. }), "{error}");
        }
        for tokens in [[0, 2], [u32::MAX, 0]] {
            let error = text.add(&tokens, good.clone()).unwrap_err();
            assert!(matches!(error, CalibrationError::NoSuchToken { expected: 2, .. }), "{error}");
        }
        assert_eq!(text.perplexity(), perplexity);
    }
}
