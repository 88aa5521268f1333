//! One kernel's continuation, and where two of them part.

use deltallm::models::{PromptCache, PromptLookup, Session};
use serde::Serialize;

use super::{args::Args, prompt::Prompt};
use crate::{
    AttentionTime, Generation, KernelChoice, LoadedModel, MemoryLimit, Wanted, dense_f16_bytes,
    first_difference, generate, print,
};

/// One kernel's continuation.
pub(super) struct Run {
    pub(super) kernel: KernelChoice,
    pub(super) limit: Option<MemoryLimit>,
    pub(super) generation: Generation,
    pub(super) prompt_tokens: usize,
    pub(super) dense_f16_bytes: usize,
    pub(super) attention: AttentionTime,
}

impl Run {
    pub(super) fn new(
        model: &LoadedModel,
        kernel: &KernelChoice,
        (limit, prompts): (Option<MemoryLimit>, Option<&PromptCache>),
        prompt: &Prompt,
        args: &Args,
        shown: bool,
    ) -> anyhow::Result<Self> {
        let sampling = args.sampling.resolve(args.demonstrates());
        let mut before = prompt.shown.as_deref();
        let mut write = |text: &str| -> anyhow::Result<()> {
            if !shown {
                return Ok(());
            }
            // With the first new text, so that a prompt which is refused is not printed.
            print(format_args!("{}{text}", before.take().unwrap_or_default()))
        };
        let attention = AttentionTime::default();
        let session = match limit {
            Some(limit) => limit.session(model, kernel, &attention)?,
            None => Session::new(model.graph.clone(), |layer| kernel.make_timed(layer, &attention))?,
        };
        let wanted = Wanted {
            prompt: &prompt.tokens,
            continues_text: prompt.shown.is_some(),
            sampling,
            max_tokens: args.max_tokens as usize,
            lookup: args.prompt_lookup.then(PromptLookup::default),
            prompts: prompts.map(|prompts| (prompts, kernel)),
        };
        let generation = generate(model, session, wanted, &mut write)?;
        write("\n")?;
        let dense_f16_bytes = dense_f16_bytes(model.graph.config(), generation.cached_tokens);
        let (kernel, prompt_tokens) = (kernel.clone(), prompt.tokens.len());
        Ok(Self { kernel, limit, generation, prompt_tokens, dense_f16_bytes, attention })
    }

    pub(super) fn attention_seconds(&self) -> f64 {
        self.attention.get().as_secs_f64()
    }

    /// Tokens that this text and `other` both have, whatever they are.
    pub(super) fn tokens_beside(&self, other: &Self) -> usize {
        self.generation.tokens.len().min(other.generation.tokens.len())
    }

    /// Whether both attended the same number of tokens: neither ended earlier, nor had read its prompt before.
    pub(super) fn did_as_much_as(&self, other: &Self) -> bool {
        let work = |run: &Self| (run.prompt_tokens - run.generation.found, run.generation.tokens.len());
        work(self) == work(other)
    }

    pub(super) fn prefill_tokens_per_second(&self) -> f64 {
        (self.prompt_tokens - self.generation.found) as f64 / self.generation.prefill.as_secs_f64()
    }
}

/// The first token in which the texts of two kernels differ.
#[derive(Serialize)]
pub(super) struct Difference {
    /// Counted from 0, the first new token.
    pub(super) index: usize,
    pub(super) token: String,
    pub(super) dense_token: String,
}

impl Difference {
    pub(super) fn find(model: &LoadedModel, run: &Run, dense: &Run) -> anyhow::Result<Option<Self>> {
        let (a, b) = (&run.generation.tokens, &dense.generation.tokens);
        let Some(index) = first_difference(a, b) else { return Ok(None) };
        let text = |id| model.tokenizer.token_text(id).map(|text| text.into_owned());
        Ok(Some(Self { index, token: text(a[index])?, dense_token: text(b[index])? }))
    }
}
