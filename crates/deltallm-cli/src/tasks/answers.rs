//! Greedy answers to several prompts at a time.

use deltallm::AttentionKernel;
use deltallm::core::HeadSparsity;
use deltallm::models::{LogitRows, Sequence};
use ndarray::{Array1, ArrayView1, Axis};

use super::batch::{batches, prefill, sparsity};
use crate::{KernelChoice, LoadedModel};

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
}

/// Continues each prompt with the most probable token until a line break, the end of the text or [`ANSWER_TOKENS`].
/// Prompts are read in batches; all answers then grow together, a token at a time. `progress` is told how many are done.
///
/// # Errors
/// For a prompt that does not fit in the context together with its answer, and a failing model.
pub fn answer_all(
    model: &LoadedModel,
    kernel: &KernelChoice,
    prompts: &[Vec<u32>],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Answer>> {
    let mut drafts = Vec::new();
    for range in batches(prompts.iter().map(Vec::len)) {
        let batch: Vec<_> = prompts[range].iter().map(|prompt| (&prompt[..], LogitRows::Last)).collect();
        for prefilled in prefill(&model.graph, kernel, &batch)? {
            drafts.push(Draft {
                kernels: prefilled.kernels,
                first_logits: prefilled.logits.index_axis_move(Axis(0), 0),
                tokens: Vec::new(),
                text: String::new(),
                done: None,
            });
        }
    }
    for draft in &mut drafts {
        draft.push(argmax(draft.first_logits.view()), model)?;
    }
    loop {
        progress(drafts.iter().filter(|draft| draft.done.is_some()).count());
        let mut open: Vec<&mut Draft> = drafts.iter_mut().filter(|draft| draft.done.is_none()).collect();
        if open.is_empty() {
            break;
        }
        let mut batch: Vec<Sequence<_>> = open
            .iter_mut()
            .map(|draft| Sequence {
                tokens: &draft.tokens[draft.tokens.len() - 1..],
                kernels: &mut draft.kernels,
                rows: LogitRows::Last,
            })
            .collect();
        let logits = model.graph.forward_batch(&mut batch)?;
        for (draft, logits) in open.into_iter().zip(logits) {
            draft.push(argmax(logits.index_axis(Axis(0), 0)), model)?;
        }
    }
    let answer = |draft: Draft| Answer {
        text: draft.text,
        tokens: draft.tokens.len(),
        unfinished: draft.done == Some(Ending::Limit),
        first_logits: draft.first_logits,
        sparsity: sparsity(&draft.kernels),
    };
    Ok(drafts.into_iter().map(answer).collect())
}

/// An answer that grows.
struct Draft {
    kernels: Vec<Box<dyn AttentionKernel>>,
    first_logits: Array1<f32>,
    tokens: Vec<u32>,
    text: String,
    done: Option<Ending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By the model, or a line break.
    Complete,
    Limit,
}

impl Draft {
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

/// The most probable token, the first of several.
fn argmax(logits: ArrayView1<f32>) -> u32 {
    let best =
        (0u32..).zip(logits).fold(
            (0, f32::NEG_INFINITY),
            |best, (token, &logit)| {
                if logit > best.1 { (token, logit) } else { best }
            },
        );
    best.0
}
