//! Perplexity, window by window.

use std::ops::Range;

use deltallm::models::Session;
use ndarray::{Array2, Axis};
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

/// Scores every token of a window but its first, or with [`Setup::decode`] its last ones. `progress` is told how many
/// tokens are done.
///
/// # Errors
/// When the model fails.
pub fn score_window(
    setup: &Setup,
    window: &[u32],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<WindowResult> {
    let mut scorer = Scorer {
        window,
        run: session(setup.model, &setup.kernel)?,
        dense: setup.dense.as_ref().map(|dense| session(setup.model, dense)).transpose()?,
        result: WindowResult::default(),
    };
    let decoded = setup.decode.map_or(0, |tokens| tokens.min(window.len().saturating_sub(2)));
    // The last token predicts nothing; the one before it is the last to be decoded.
    let prompt = if decoded > 0 { window.len() - 1 - decoded } else { window.len() };
    scorer.read(0..prompt, decoded == 0, progress)?;
    let before = scorer.run.stats().total();
    for token in prompt..prompt + decoded {
        scorer.decode(token)?;
        progress(token + 1);
    }
    let Scorer { run, mut result, .. } = scorer;
    let mut sparsity = run.stats().total();
    if decoded > 0 {
        sparsity.pairs -= before.pairs;
        sparsity.exact_pairs -= before.exact_pairs;
        sparsity.skipped_values -= before.skipped_values;
    }
    result.run.sparsity.add(&sparsity);
    Ok(result)
}

/// One window on its way through both kernels, side by side, so that the logits of one chunk each are all that is in memory.
struct Scorer<'m, 'w> {
    window: &'w [u32],
    run: Session<'m>,
    dense: Option<Session<'m>>,
    result: WindowResult,
}

impl Scorer<'_, '_> {
    /// Reads tokens of the window in one prompt, and scores what they predict if that is `scored`.
    fn read(
        &mut self,
        tokens: Range<usize>,
        scored: bool,
        progress: &mut dyn FnMut(usize),
    ) -> anyhow::Result<()> {
        let Self { window, run, dense, result } = self;
        let mut failure = None;
        run.score(&window[tokens.clone()], &mut |done, logits| {
            let end = tokens.start + done;
            let start = end - logits.nrows();
            let mut step = || -> anyhow::Result<()> {
                let dense_logits = match dense {
                    Some(session) => Some(logits_of(session, &window[start..end])?),
                    None => None,
                };
                if scored {
                    result.add(&window[start + 1..window.len().min(end + 1)], &logits, dense_logits.as_ref());
                }
                Ok(())
            };
            failure = failure.take().or(step().err());
            progress(end);
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Reads the next token as in generation, and scores what it predicts.
    fn decode(&mut self, token: usize) -> anyhow::Result<()> {
        let decode = |session: &mut Session| {
            let logits = session.decode(self.window[token])?;
            anyhow::Ok(logits.insert_axis(Axis(0)))
        };
        let dense_logits = self.dense.as_mut().map(decode).transpose()?;
        let logits = decode(&mut self.run)?;
        self.result.add(&self.window[token + 1..token + 2], &logits, dense_logits.as_ref());
        Ok(())
    }
}

impl WindowResult {
    /// Adds the predictions of the tokens `next`, `[tokens, vocab_size]`.
    fn add(&mut self, next: &[u32], logits: &Array2<f32>, dense_logits: Option<&Array2<f32>>) {
        let scores = score_rows(logits.view(), next);
        self.run.add(&scores);
        if let Some(dense_logits) = dense_logits {
            let dense = score_rows(dense_logits.view(), next);
            self.dense.get_or_insert_default().add(&dense);
            let comparison = self.comparison.get_or_insert_default();
            comparison.add((dense_logits.view(), &dense), (logits.view(), &scores));
        }
    }
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
