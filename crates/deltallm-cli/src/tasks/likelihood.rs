//! Log-likelihoods of continuations, in batches, of one kernel or of two side by side.

use deltallm::core::HeadSparsity;
use ndarray::{ArrayView2, s};

use super::batch::batches;
use super::reader::Reader;
use super::{Request, Setup};
use crate::{Comparison, TokenScore, score_rows};

/// How probable a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestScore {
    /// Sum over the continuation's tokens, nats.
    pub log_likelihood: f64,
    /// Whether every token of it is the most probable one: greedy decoding would have written it.
    pub greedy: bool,
}

/// What the requests of one example came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExampleScores {
    /// Of each request.
    pub run: Vec<RequestScore>,
    /// With exact attention, if that is compared.
    pub dense: Option<Vec<RequestScore>>,
    /// Over all positions scored.
    pub comparison: Option<Comparison>,
    /// Of all layers and heads.
    pub sparsity: HeadSparsity,
}

/// One prompt and the requests of an example that share it: those that differ in the last token alone, which is not
/// read.
struct Pass<'r> {
    example: usize,
    input: &'r [u32],
    requests: Vec<(usize, &'r [u32])>,
}

impl Pass<'_> {
    fn rows(&self) -> usize {
        self.requests.iter().map(|(_, targets)| targets.len()).max().unwrap_or(0)
    }
}

/// Scores the examples of a run.
pub struct Scorer<'s> {
    pub(super) setup: &'s Setup<'s>,
    run: Reader<'s>,
    dense: Option<Reader<'s>>,
}

impl<'s> Scorer<'s> {
    /// Nothing is read yet.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn new(setup: &'s Setup<'s>) -> anyhow::Result<Self> {
        let beginning = match setup.beginning.as_str() {
            "" => Vec::new(),
            text => setup.model.tokenizer.encode_beginning(text)?,
        };
        let reader = |kernel| Reader::new(&setup.model.graph, kernel, beginning.clone());
        Ok(Self { setup, run: reader(&setup.kernel), dense: setup.dense.as_ref().map(reader) })
    }

    /// Scores the requests of each example. `progress` is told how many examples are done.
    ///
    /// # Errors
    /// When the model fails, and for what [`score_rows`](crate::score_rows) refuses.
    pub(super) fn score_requests(
        &mut self,
        examples: &[&[Request]],
        progress: &mut dyn FnMut(usize),
    ) -> anyhow::Result<Vec<ExampleScores>> {
        let nothing = RequestScore { log_likelihood: 0.0, greedy: false };
        let mut results: Vec<ExampleScores> = examples
            .iter()
            .map(|requests| ExampleScores {
                run: vec![nothing; requests.len()],
                dense: self.dense.as_ref().map(|_| vec![nothing; requests.len()]),
                comparison: self.dense.as_ref().map(|_| Comparison::default()),
                sparsity: HeadSparsity::default(),
            })
            .collect();
        let passes: Vec<Pass> = examples
            .iter()
            .enumerate()
            .flat_map(|(example, requests)| shared_passes(example, requests))
            .collect();
        for range in batches(passes.iter().map(|pass| pass.input.len())) {
            let batch = &passes[range];
            let prompts: Vec<_> = batch.iter().map(|pass| (pass.input, pass.rows())).collect();
            let runs = self.run.read(&prompts)?;
            let dense = self.dense.as_mut().map(|dense| dense.read(&prompts)).transpose()?;
            for (index, (pass, run)) in batch.iter().zip(&runs).enumerate() {
                let result = &mut results[pass.example];
                result.sparsity += run.sparsity;
                let dense = dense.as_ref().map(|dense| dense[index].logits.view());
                for &(request, targets) in &pass.requests {
                    result.add(request, targets, run.logits.view(), dense)?;
                }
            }
            progress(batch.last().map_or(0, |pass| pass.example));
        }
        Ok(results)
    }
}

fn shared_passes(example: usize, requests: &[Request]) -> Vec<Pass<'_>> {
    let mut passes: Vec<Pass> = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let own = (index, request.targets());
        match passes.iter_mut().find(|pass| pass.input == request.input()) {
            Some(pass) => pass.requests.push(own),
            None => passes.push(Pass { example, input: request.input(), requests: vec![own] }),
        }
    }
    passes
}

impl ExampleScores {
    /// Scores a request by the last rows of its prompt's logits.
    fn add(
        &mut self,
        request: usize,
        targets: &[u32],
        logits: ArrayView2<f32>,
        dense_logits: Option<ArrayView2<f32>>,
    ) -> anyhow::Result<()> {
        let tail = logits.slice(s![logits.nrows() - targets.len().., ..]);
        let scores = score_rows(tail, targets)?;
        self.run[request] = RequestScore::new(&scores, targets);
        if let (Some(logits), Some(dense), Some(comparison)) =
            (dense_logits, &mut self.dense, &mut self.comparison)
        {
            let dense_tail = logits.slice(s![logits.nrows() - targets.len().., ..]);
            let dense_scores = score_rows(dense_tail, targets)?;
            dense[request] = RequestScore::new(&dense_scores, targets);
            comparison.add((dense_tail, &dense_scores), (tail, &scores));
        }
        Ok(())
    }
}

impl RequestScore {
    fn new(scores: &[TokenScore], targets: &[u32]) -> Self {
        Self {
            log_likelihood: scores.iter().map(|score| score.log_likelihood).sum(),
            greedy: scores.iter().zip(targets).all(|(score, target)| score.top == *target as usize),
        }
    }
}
