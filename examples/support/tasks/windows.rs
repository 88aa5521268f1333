//! Perplexity, window by window.

use deltallm::models::Session;
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::Setup;
use crate::{Comparison, KernelChoice, LoadedModel, Perplexity, score_rows};

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

/// Scores every token of a window but its first. Both kernels go through the window side by side, so that the
/// logits of one chunk each are all that is in memory. `progress` is told how many tokens are done.
///
/// # Errors
/// When the model fails.
pub fn score_window(
    setup: &Setup,
    window: &[u32],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<WindowResult> {
    let mut result = WindowResult::default();
    let mut run = session(setup.model, &setup.kernel)?;
    let mut dense = match &setup.dense {
        Some(dense) => Some((session(setup.model, dense)?, Perplexity::default(), Comparison::default())),
        None => None,
    };
    let mut failure = None;
    run.score(window, &mut |done, logits| {
        let start = done - logits.nrows();
        let next = &window[start + 1..window.len().min(done + 1)];
        let scores = score_rows(logits.view(), next);
        result.run.add(&scores);
        if let Some((session, perplexity, comparison)) = &mut dense {
            match logits_of(session, &window[start..done]) {
                Ok(dense_logits) => {
                    let dense = score_rows(dense_logits.view(), next);
                    perplexity.add(&dense);
                    comparison.add((dense_logits.view(), &dense), (logits.view(), &scores));
                }
                Err(error) => failure = Some(error),
            }
        }
        progress(done);
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    result.run.sparsity.add(&run.stats().total());
    if let Some((_, perplexity, comparison)) = dense {
        result.dense = Some(perplexity);
        result.comparison = Some(comparison);
    }
    Ok(result)
}

/// All windows together.
pub fn sum_windows(windows: &[WindowResult]) -> WindowResult {
    let mut sum = WindowResult::default();
    for window in windows {
        sum.run.merge(&window.run);
        if let Some(dense) = &window.dense {
            sum.dense.get_or_insert_default().merge(dense);
        }
        if let Some(comparison) = &window.comparison {
            sum.comparison.get_or_insert_default().merge(comparison);
        }
    }
    sum
}

fn session<'m>(model: &'m LoadedModel, kernel: &KernelChoice) -> anyhow::Result<Session<'m>> {
    let mut session = Session::new(&model.llama, |layer| kernel.make(layer))?;
    session.set_chunk(CHUNK);
    Ok(session)
}

/// The logits of the next tokens, at most a chunk of them, `[tokens, vocab_size]`.
fn logits_of(session: &mut Session, tokens: &[u32]) -> anyhow::Result<Array2<f32>> {
    let mut result = Array2::default((0, 0));
    session.score(tokens, &mut |_, logits| result = logits)?;
    Ok(result)
}
