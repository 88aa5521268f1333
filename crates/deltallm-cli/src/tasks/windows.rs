//! Perplexity, window by window.

use deltallm::models::Session;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::{Comparison, KernelChoice, OneByOne, Perplexity, score_rows};

/// Tokens whose logits are in memory at a time, once per kernel.
const CHUNK: usize = 256;

/// Sums over windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowResult {
    /// With the kernel that is measured.
    pub run: Perplexity,
    /// With exact attention, if that is compared.
    pub dense: Option<Perplexity>,
    /// Over the same tokens.
    pub comparison: Option<Comparison>,
}

/// Scores every token of a window but its first. `progress` is told how many tokens are done.
///
/// # Errors
/// When the model fails, and for what [`score_rows`] refuses.
pub fn score_window(
    setup: &Setup,
    window: &[u32],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<WindowResult> {
    let mut run = session(setup, &setup.kernel)?;
    let mut dense = setup.dense.as_ref().map(|dense| session(setup, dense)).transpose()?;
    let mut result = WindowResult::default();
    let mut failure = None;
    // Both kernels go through the window side by side, so that the logits of one chunk each are all that is in memory.
    run.score(window, |done, logits| {
        let start = done - logits.nrows();
        let next = &window[start + 1..window.len().min(done + 1)];
        let dense = dense.as_mut().map(|session| logits_of(session, &window[start..done])).transpose();
        if let Err(error) = dense.and_then(|dense| result.add(next, &logits, dense.as_ref())) {
            failure.get_or_insert(error);
        }
        progress(done);
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    result.run.sparsity += run.stats().total();
    Ok(result)
}

impl WindowResult {
    /// Adds the predictions of the tokens `next`, `[tokens, vocab_size]`.
    fn add(
        &mut self,
        next: &[u32],
        logits: &Array2<f32>,
        dense_logits: Option<&Array2<f32>>,
    ) -> anyhow::Result<()> {
        let scores = score_rows(logits.view(), next)?;
        self.run.add(&scores);
        if let Some(dense_logits) = dense_logits {
            let dense = score_rows(dense_logits.view(), next)?;
            self.dense.get_or_insert_default().add(&dense);
            let comparison = self.comparison.get_or_insert_default();
            comparison.add((dense_logits.view(), &dense), (logits.view(), &scores));
        }
        Ok(())
    }
}

/// All windows together.
pub fn sum_windows(windows: &[WindowResult]) -> WindowResult {
    let mut sum = WindowResult::default();
    for window in windows {
        sum.run += window.run;
        if let Some(dense) = &window.dense {
            *sum.dense.get_or_insert_default() += *dense;
        }
        if let Some(comparison) = &window.comparison {
            *sum.comparison.get_or_insert_default() += *comparison;
        }
    }
    sum
}

fn session(setup: &Setup, kernel: &KernelChoice) -> anyhow::Result<Session> {
    let mut session = Session::new(setup.model.graph.clone(), |layer| {
        let kernel = kernel.make(layer)?;
        Ok(if setup.decode { Box::new(OneByOne(kernel)) } else { kernel })
    })?;
    session.set_chunk(CHUNK);
    Ok(session)
}

/// The logits of the next tokens, at most a chunk of them, `[tokens, vocab_size]`.
fn logits_of(session: &mut Session, tokens: &[u32]) -> anyhow::Result<Array2<f32>> {
    let mut result = Array2::default((0, 0));
    session.score(tokens, |_, logits| result = logits)?;
    Ok(result)
}
