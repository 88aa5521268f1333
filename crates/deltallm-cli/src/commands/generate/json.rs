//! What was measured, for programs.

use serde::Serialize;

use super::run::{Difference, Run};
use crate::{
    BudgetRefusal, Generation, KernelKind, KernelSettings, LimitPolicy, LoadedModel, MemoryLimit,
    SkippedValues, Stop, peak_rss_bytes,
};

/// The result for programs.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    model: &'a str,
    #[serde(flatten)]
    measured: Measured<'a>,
    weights_bytes: usize,
    loading_seconds: f64,
    peak_rss_bytes: Option<u64>,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    dense: Option<Measured<'a>>,
    /// Absent without a comparison, null when nothing differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<Option<Difference>>,
}

impl<'a> Report<'a> {
    /// `dense` is the same with exact attention, from which the text differs as `first_difference` says.
    pub(super) fn new(
        model: &'a LoadedModel,
        run: &'a Run,
        dense: Option<&'a Run>,
        first_difference: Option<Option<Difference>>,
    ) -> Self {
        Self {
            model: &model.name,
            measured: Measured::new(run),
            weights_bytes: model.graph.weights().bytes(),
            loading_seconds: model.loading.as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            threads: rayon::current_num_threads(),
            dense: dense.map(Measured::new),
            first_difference,
        }
    }
}

#[derive(Serialize)]
struct Measured<'a> {
    kernel: KernelKind,
    prompt_tokens: usize,
    /// Of these, how many had been read before: with --prompt-cache.
    prompt_tokens_found: usize,
    generated_tokens: usize,
    /// Drafted tokens: with --prompt-lookup.
    drafted_tokens: usize,
    /// Of these, tokens that were accepted.
    accepted_tokens: usize,
    text: &'a str,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: Option<f64>,
    zero_fraction: f64,
    sparsity: f64,
    #[serde(flatten)]
    skipped: SkippedValues,
    kv_bytes: usize,
    kv_bytes_dense_f16: usize,
    stop: Stop,
    time_to_first_token_seconds: f64,
    /// In the attention kernels, of prompt and text together.
    attention_seconds: f64,
    /// Absent without a budget.
    #[serde(flatten)]
    budget: Option<BudgetReport>,
    /// Whether the text is longer than those that the profile was measured on.
    beyond_profile: bool,
    settings: KernelSettings,
}

impl<'a> Measured<'a> {
    fn new(run: &'a Run) -> Self {
        let Generation { tokens, text, stop, footprint, sparsity, first_token, .. } = &run.generation;
        Self {
            kernel: run.kernel.kind(),
            prompt_tokens: run.prompt_tokens,
            prompt_tokens_found: run.generation.found,
            generated_tokens: tokens.len(),
            drafted_tokens: run.generation.speculation.drafted,
            accepted_tokens: run.generation.speculation.accepted,
            text,
            prefill_tokens_per_second: run.prefill_tokens_per_second(),
            decode_tokens_per_second: run.generation.decode_tokens_per_second(),
            zero_fraction: sparsity.zero_fraction(),
            sparsity: sparsity.sparsity(),
            skipped: SkippedValues::new(sparsity, &run.generation.prompt_sparsity),
            kv_bytes: footprint.total(),
            kv_bytes_dense_f16: run.dense_f16_bytes,
            stop: *stop,
            time_to_first_token_seconds: first_token.as_secs_f64(),
            attention_seconds: run.attention_seconds(),
            budget: run.limit.map(|MemoryLimit { bytes, policy }| BudgetReport {
                kv_budget_bytes: bytes,
                at_limit: policy,
                times_narrowed: run.generation.narrowed.times,
                refused: run.generation.refused,
            }),
            beyond_profile: run.kernel.is_beyond_profile(run.generation.cached_tokens),
            settings: run.kernel.settings(),
        }
    }
}

#[derive(Serialize)]
struct BudgetReport {
    kv_budget_bytes: usize,
    at_limit: LimitPolicy,
    #[serde(rename = "times_relieved")]
    times_narrowed: usize,
    /// What did not fit any more, where that ended the text.
    #[serde(rename = "budget_refused")]
    refused: Option<BudgetRefusal>,
}
