//! Greedy answers to several prompts at a time.

use deltallm::AttentionKernel;
use deltallm::core::HeadSparsity;
use deltallm::models::{LogitRows, Sequence};
use ndarray::{Array1, ArrayView2, Axis};

use super::batch::{Prefilled, batches, prefill, sparsity};
use crate::measure::argmax;
use crate::{Comparison, KernelChoice, LoadedModel, score_rows};

/// Most tokens of an answer. (lm-evaluation-harness allows 256; answers that are right are far shorter.)
pub const ANSWER_TOKENS: usize = 64;

/// What a model wrote.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Up to the first line break.
    pub text: String,
    /// Tokens generated, the one that ended the answer included.
    pub tokens: usize,
    /// Whether it was cut off after [`ANSWER_TOKENS`] tokens.
    pub unfinished: bool,
    /// The logits after the prompt, `[vocab_size]`.
    pub first_logits: Array1<f32>,
    /// Of all layers and heads.
    pub sparsity: HeadSparsity,
    /// Of these, what came of the prompt.
    pub prompt: HeadSparsity,
    /// How another kernel that reads the same prompt and this answer predicts every token of it, if there is one.
    pub follower: Option<Comparison>,
}

/// Continues each prompt with the most probable token until a line break, the end of the text or [`ANSWER_TOKENS`].
/// Prompts are read in batches; all answers then grow together, a token at a time. `progress` is told how many are done.
///
/// A kernel that follows is given the tokens that `kernel` has chosen, so that both are compared on the same text.
///
/// # Errors
/// For a prompt that does not fit in the context together with its answer, and a failing model.
pub fn answer_all(
    model: &LoadedModel,
    kernel: &KernelChoice,
    follower: Option<&KernelChoice>,
    prompts: &[Vec<u32>],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Answer>> {
    let mut drafts = Vec::new();
    for range in batches(prompts.iter().map(Vec::len)) {
        let batch: Vec<_> = prompts[range].iter().map(|prompt| (&prompt[..], LogitRows::Last)).collect();
        let following = follower.map(|kernel| prefill(&model.graph, kernel, &batch)).transpose()?;
        let mut following = following.into_iter().flatten();
        for own in prefill(&model.graph, kernel, &batch)? {
            drafts.push(Draft::new(own, following.next(), model)?);
        }
    }
    loop {
        progress(drafts.iter().filter(|draft| draft.done.is_some()).count());
        let mut open: Vec<&mut Draft> = drafts.iter_mut().filter(|draft| draft.done.is_none()).collect();
        if open.is_empty() {
            break;
        }
        let mut batch: Vec<Sequence<_>> = Vec::new();
        for draft in &mut open {
            let Draft { tokens, kernels, follower, .. } = &mut **draft;
            let (tokens, rows) = (&tokens[tokens.len() - 1..], LogitRows::Last);
            batch.push(Sequence { tokens, kernels, rows });
            batch.extend(follower.iter_mut().map(|Follower { kernels, .. }| Sequence {
                tokens,
                kernels,
                rows,
            }));
        }
        let mut logits = model.graph.forward_batch(&mut batch)?.into_iter();
        for draft in open {
            let Some(own) = logits.next() else { break };
            let following = if draft.follower.is_some() { logits.next() } else { None };
            draft.go_on(own.view(), following.as_ref().map(|logits| logits.view()), model)?;
        }
    }
    Ok(drafts.into_iter().map(Draft::finish).collect())
}

/// An answer that grows.
struct Draft {
    kernels: Vec<Box<dyn AttentionKernel>>,
    follower: Option<Follower>,
    prompt: HeadSparsity,
    first_logits: Array1<f32>,
    tokens: Vec<u32>,
    text: String,
    done: Option<Ending>,
}

/// Another kernel on the same text.
struct Follower {
    kernels: Vec<Box<dyn AttentionKernel>>,
    comparison: Comparison,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By the model, or a line break.
    Complete,
    Limit,
}

impl Draft {
    /// With its first token.
    fn new(own: Prefilled, follower: Option<Prefilled>, model: &LoadedModel) -> anyhow::Result<Self> {
        let (follower, following) = match follower {
            Some(Prefilled { kernels, logits }) => {
                (Some(Follower { kernels, comparison: Comparison::default() }), Some(logits))
            }
            None => (None, None),
        };
        let mut draft = Self {
            prompt: sparsity(&own.kernels),
            first_logits: own.logits.index_axis(Axis(0), 0).to_owned(),
            kernels: own.kernels,
            follower,
            tokens: Vec::new(),
            text: String::new(),
            done: None,
        };
        draft.go_on(own.logits.view(), following.as_ref().map(|logits| logits.view()), model)?;
        Ok(draft)
    }

    /// Takes the most probable token of one row of logits, and compares the other kernel's with it.
    fn go_on(
        &mut self,
        logits: ArrayView2<f32>,
        following: Option<ArrayView2<f32>>,
        model: &LoadedModel,
    ) -> anyhow::Result<()> {
        let token = argmax(logits.index_axis(Axis(0), 0)).unwrap_or_default() as u32;
        if let (Some(follower), Some(following)) = (&mut self.follower, following) {
            let (own, other) = (score_rows(logits, &[token])?, score_rows(following, &[token])?);
            follower.comparison.add((logits, &own), (following, &other));
        }
        self.push(token, model)
    }

    fn finish(self) -> Answer {
        Answer {
            text: self.text,
            tokens: self.tokens.len(),
            unfinished: self.done == Some(Ending::Limit),
            first_logits: self.first_logits,
            sparsity: sparsity(&self.kernels),
            prompt: self.prompt,
            follower: self.follower.map(|follower| follower.comparison),
        }
    }

    fn push(&mut self, token: u32, model: &LoadedModel) -> anyhow::Result<()> {
        self.tokens.push(token);
        // Decoded as a whole, since a character may be spread over several tokens.
        self.text = model.tokenizer.decode(&self.tokens)?;
        if let Some(end) = self.text.find('\n') {
            self.text.truncate(end);
            self.done = Some(Ending::Complete);
        } else if model.tokenizer.eos_ids().contains(&token) {
            self.done = Some(Ending::Complete);
        } else if self.tokens.len() == ANSWER_TOKENS {
            self.done = Some(Ending::Limit);
        }
        Ok(())
    }
}
