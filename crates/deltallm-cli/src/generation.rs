//! Continuing a prompt, measured.

use std::fmt;
use std::time::{Duration, Instant};

use deltallm::core::HeadSparsity;
use deltallm::models::{
    GenerationError, ModelError, Narrowed, PromptCache, PromptLookup, Prompted, Sampler, SamplerConfig,
    SamplingError, Session, SpeculationStats, StopReason,
};
use deltallm::{AttentionError, CoreError, Footprint};

use crate::{KernelChoice, LoadedModel, Progress, format_bytes, interrupted, stop_on_ctrl_c};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model said so.
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model has no further positions.
    ContextFull,
    /// The caches may not grow any further.
    BudgetExhausted,
    /// Ctrl-C.
    Interrupted,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndOfText => "the model ended the text",
            Self::MaxTokens => "as many as asked for",
            Self::ContextFull => "stopped: the context is full",
            Self::BudgetExhausted => "stopped: the next token does not fit in the memory budget",
            Self::Interrupted => "interrupted",
        })
    }
}

/// What did not fit in a memory budget. Caches grow by blocks of tokens in all layers at once, so a part of the budget is free where
/// they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct BudgetRefusal {
    /// The layer whose cache was to grow.
    pub layer: usize,
    /// By so many bytes.
    pub requested_bytes: usize,
    /// What the layers before it had left.
    pub available_bytes: usize,
    /// Most that the next token may take in all layers; `None` where a kernel does not say.
    pub next_token_bytes: Option<usize>,
    /// Free in the end, when the layers before it have given back what they had taken for that token.
    pub free_bytes: usize,
    /// Of so many.
    pub budget_bytes: usize,
}

impl BudgetRefusal {
    /// What `error` says of a session that it has ended.
    fn new(error: &ModelError, session: &Session) -> Option<Self> {
        let ModelError::Attention { layer, source: AttentionError::Core(source) } = error else {
            return None;
        };
        let CoreError::BudgetExhausted { requested, available, limit } = *source else { return None };
        Some(Self {
            layer: *layer,
            requested_bytes: requested,
            available_bytes: available,
            next_token_bytes: session.kernels().iter().map(|kernel| kernel.growth(1)).sum(),
            free_bytes: limit.saturating_sub(session.footprint().total()),
            budget_bytes: limit,
        })
    }
}

/// `layer 2 asked for 16 kB when 12 kB were left: the next token takes up to 80 kB in all layers, and 46 kB of 332 kB are free`
impl fmt::Display for BudgetRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |bytes: usize| format_bytes(bytes as u64);
        let (requested, available) = (bytes(self.requested_bytes), bytes(self.available_bytes));
        write!(f, "layer {} asked for {requested} when {available} were left: ", self.layer)?;
        if let Some(next) = self.next_token_bytes {
            write!(f, "the next token takes up to {} in all layers, and ", bytes(next))?;
        }
        write!(f, "{} of {} are free", bytes(self.free_bytes), bytes(self.budget_bytes))
    }
}

/// A continued prompt.
#[derive(Debug)]
pub struct Generation {
    /// The new tokens, the one that ended the text included.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why there are no more.
    pub stop: Stop,
    /// How many of the prompt's first tokens had been read before.
    pub found: usize,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// From the start to the first new token.
    pub first_token: Duration,
    /// From the first new token to the last.
    pub decode: Duration,
    /// Tokens in the cache at the end.
    pub cached_tokens: usize,
    /// Bytes of all layers' caches at the end.
    pub footprint: Footprint,
    /// What did not fit any more, where that ended the text.
    pub refused: Option<BudgetRefusal>,
    /// What was done to stay within a memory budget.
    pub narrowed: Narrowed,
    /// What was drafted of the text, and accepted.
    pub speculation: SpeculationStats,
    /// Sparsity of all layers and heads together.
    pub sparsity: HeadSparsity,
    /// Of these, what came of the prompt.
    pub prompt_sparsity: HeadSparsity,
}

impl Generation {
    /// New tokens per second, the first one not counted: it comes with the prompt. `None` without a second one.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        (self.tokens.len() > 1).then(|| (self.tokens.len() - 1) as f64 / self.decode.as_secs_f64())
    }
}

/// What is to be continued, and how.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The tokens to continue.
    pub prompt: &'a [u32],
    /// Whether the new text goes on in the middle of the prompt's, rather than answering it.
    pub continues_text: bool,
    /// How tokens are drawn.
    pub sampling: SamplerConfig,
    /// Most new tokens.
    pub max_tokens: usize,
    /// How the text is drafted from what has been there before, for speculative decoding.
    pub lookup: Option<PromptLookup>,
    /// Where prompts are kept that have been read, for this kernel.
    pub prompts: Option<(&'a PromptCache, &'a KernelChoice)>,
}

/// Continues a prompt in an empty `session`; `on_text` gets the text as it comes.
///
/// # Errors
/// For a prompt that does not fit in the context or in the session's memory budget, settings the sampler refuses, a failing model, a system
/// that lets nobody handle Ctrl-C, and whatever `on_text` fails with.
pub fn generate(
    model: &LoadedModel,
    mut session: Session,
    wanted: Wanted,
    on_text: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Generation> {
    let Wanted { prompt, continues_text, sampling, max_tokens, lookup, prompts } = wanted;
    let context = model.graph.config().context_length;
    anyhow::ensure!(
        prompt.len() <= context,
        "the prompt has {} tokens: expected at most {context}, the model's context; shorten it",
        prompt.len()
    );
    let mut sampler = Sampler::new(sampling).map_err(by_flag)?;

    let start = Instant::now();
    let mut progress = Progress::new("reading the prompt");
    let read = |done| progress.update(done, prompt.len());
    let prompted = match prompts {
        Some((cache, kernel)) => cache.prefill(&mut session, prompt, &|a, b| kernel.reads_alike(a, b), read),
        None => session.prefill_with(prompt, read).map(|logits| Prompted {
            logits,
            found: 0,
            writing: Duration::ZERO,
        }),
    };
    let Prompted { logits, found, writing } = prompted.map_err(|error| advise(error, prompt.len()))?;
    drop(progress);
    let prefill = start.elapsed().saturating_sub(writing);
    let prompt_sparsity = session.stats().total();

    // While the prompt is read Ctrl-C ends the program: there is no text yet to stop at.
    stop_on_ctrl_c()?;
    let mut new = session.generate(logits, &model.tokenizer, &mut sampler);
    if !continues_text {
        new = new.as_answer();
    }
    if let Some(lookup) = lookup {
        new = new.with_lookup(lookup);
    }
    let (mut first_token, mut refused) = (prefill, None);
    let stop = loop {
        match new.stop_reason() {
            Some(StopReason::EndOfText) => break Stop::EndOfText,
            Some(_) => break Stop::ContextFull,
            None if new.tokens().len() >= max_tokens => break Stop::MaxTokens,
            None if interrupted() => break Stop::Interrupted,
            None => {}
        }
        match new.next() {
            Some(Err(GenerationError::Model(error))) if error.is_budget_exhausted() => {
                refused = Some(error);
                break Stop::BudgetExhausted;
            }
            Some(generated) => on_text(&generated?.text)?,
            // It says why.
            None => continue,
        }
        if new.tokens().len() == 1 {
            first_token = start.elapsed();
        }
    };
    let decode = start.elapsed().saturating_sub(first_token);
    let (tokens, shown) = (new.tokens().to_vec(), new.text().len());
    let text = new.finish();
    on_text(&text[shown..])?;
    // A draft is not of the text.
    session.rewind(session.tokens().len())?;
    Ok(Generation {
        tokens,
        text,
        stop,
        found,
        prefill,
        first_token,
        decode,
        cached_tokens: session.tokens().len(),
        footprint: session.footprint(),
        refused: refused.and_then(|error| BudgetRefusal::new(&error, &session)),
        narrowed: session.narrowed(),
        speculation: session.speculation_stats(),
        sparsity: session.stats().total(),
        prompt_sparsity,
    })
}

/// What a setting is called here.
fn by_flag(error: SamplingError) -> anyhow::Error {
    match error {
        SamplingError::InvalidConfig { field, expected, got } => {
            anyhow::anyhow!("--{}: expected {expected}, got {got}", field.replace('_', "-"))
        }
        other => other.into(),
    }
}

fn advise(error: ModelError, tokens: usize) -> anyhow::Error {
    if !error.is_budget_exhausted() {
        return error.into();
    }
    anyhow::Error::new(error).context(format!(
        "--kv-budget: expected enough for the prompt of {tokens} tokens; give more, shorten the prompt, or choose \
         another --at-limit"
    ))
}

/// The index of the first token in which two generations differ, or `None` if one is the other or its beginning.
pub fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        assert_eq!(first_difference(&[1, 2, 3], &[1, 2, 4]), Some(2));
        assert_eq!(first_difference(&[1, 2], &[1, 2, 4]), None);
        assert_eq!(first_difference(&[], &[]), None);
    }
}
