//! From an example to its result.

use anyhow::Context;
use deltallm::core::HeadSparsity;
use serde::{Deserialize, Serialize};

use super::{ExampleScores, Pair, Request, RequestScore, Scorer, Unscorable};
use crate::Comparison;

/// What one kernel made of an example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What decides whether the answer is right.
    pub prediction: String,
    /// In the order of the task's metrics.
    pub metrics: Vec<f64>,
    /// Of each request, nats; none where text is generated.
    pub log_likelihoods: Vec<f64>,
    /// Whether a generated answer reached the limit of its length.
    pub unfinished: bool,
}

/// Lengths of sequences, context and continuation together, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lengths {
    /// How many sequences.
    pub sequences: usize,
    /// Their sum.
    pub sum: usize,
    /// The longest.
    pub longest: usize,
    /// How many were too long for the context and lost their beginning.
    pub truncated: usize,
}

impl Lengths {
    /// One sequence more.
    pub fn add(&mut self, tokens: usize, truncated: bool) {
        self.merge(&Self { sequences: 1, sum: tokens, longest: tokens, truncated: usize::from(truncated) });
    }

    /// Those of another example.
    pub fn merge(&mut self, other: &Self) {
        // What a log of another run says may be anything.
        self.sequences = self.sequences.saturating_add(other.sequences);
        self.sum = self.sum.saturating_add(other.sum);
        self.longest = self.longest.max(other.longest);
        self.truncated = self.truncated.saturating_add(other.truncated);
    }
}

/// All that is kept of an example.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExampleResult {
    /// With the kernel that is measured.
    pub run: Outcome,
    /// With exact attention, if that is compared.
    pub dense: Option<Outcome>,
    /// Over the positions that were scored.
    pub comparison: Option<Comparison>,
    /// Tokens scored or generated.
    pub tokens: usize,
    /// Of all sequences.
    pub lengths: Lengths,
    /// Of all layers and heads.
    pub sparsity: HeadSparsity,
    /// Of these, what came of the prompt; the rest came while text was generated.
    pub prompt: HeadSparsity,
}

/// What became of an example: its result, or why it has none.
pub type Scored = Result<ExampleResult, Unscorable>;

/// An example that is decided by the log-likelihoods of continuations.
pub trait LikelihoodExample {
    /// What is scored.
    fn pairs(&self) -> &[Pair];

    /// The pair of the right answer.
    fn right(&self) -> &Pair;

    /// Decides, given the score of each pair.
    fn judge(&self, scores: &[RequestScore]) -> Outcome;
}

/// Scores examples together; `first` is the number of the first one in its file, counted from 0. An example with a pair that cannot be
/// scored is left out, since there is nothing to compare the others with. `progress` is told how many are done.
///
/// # Errors
/// For a tokenizer or a model that fails.
pub fn score_examples<E: LikelihoodExample>(
    scorer: &mut Scorer,
    first: usize,
    examples: &[E],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Scored>> {
    let setup = scorer.setup;
    let requests = |(index, example): (usize, &E)| {
        let encode = |pair: &Pair| {
            let context = format!("{}{}", setup.beginning, pair.context);
            let pair = Pair { context, continuation: pair.continuation.clone() };
            Request::new(setup.model, &pair, &setup.delimiter, setup.context)
        };
        let requests: anyhow::Result<Vec<_>> = example.pairs().iter().map(encode).collect();
        let requests = requests.with_context(|| format!("example {}", first + index + 1))?;
        anyhow::Ok(requests.into_iter().collect::<Result<Vec<_>, _>>())
    };
    let requests = examples.iter().enumerate().map(requests).collect::<anyhow::Result<Vec<_>>>()?;
    let scorable: Vec<&[Request]> = requests.iter().map(|own| own.as_deref().unwrap_or_default()).collect();
    let scores = scorer.score_requests(&scorable, progress)?;
    let result = |((example, requests), scores): ((&E, Result<Vec<Request>, _>), ExampleScores)| {
        let requests = requests?;
        let mut lengths = Lengths::default();
        requests.iter().for_each(|request| lengths.add(request.len(), request.truncated()));
        Ok(ExampleResult {
            run: example.judge(&scores.run),
            dense: scores.dense.as_ref().map(|dense| example.judge(dense)),
            comparison: scores.comparison,
            tokens: requests.iter().map(|request| request.targets().len()).sum(),
            lengths,
            sparsity: scores.sparsity,
            prompt: scores.sparsity,
        })
    };
    Ok(examples.iter().zip(requests).zip(scores).map(result).collect())
}
