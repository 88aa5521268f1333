//! Perplexity of a text, in windows.

use anyhow::ensure;
use deltallm::core::HeadSparsity;
use serde_json::{Map, Value, json};

use super::lines::{comparison_line, give_or_take};
use super::resumed::run_all;
use super::{args::Args, scores::Scores};
use crate::{Perplexity, Plan, Setup, WindowResult, score_window, sha256_hex, sum_windows};

pub(super) fn run(args: &Args, setup: &Setup, text: &str) -> anyhow::Result<Scores> {
    let (tokens, context) = (setup.model.encode_windows(text)?, setup.context);
    let windows = tokens.windows(context, args.limit.map_or(usize::MAX, |limit| limit as usize));
    ensure!(
        !windows.is_empty(),
        "--data {}: expected at least one window of {context} tokens, got a text of {}; use a longer text or a smaller --context",
        args.data.display(),
        tokens.tokens()
    );
    let plan = Plan { examples: windows.len(), window: 1, steps: context };
    let results = run_all(args, setup, &sha256_hex(text.as_bytes()), plan, &mut |range, progress| {
        range.map(|index| score_window(setup, &windows[index], progress)).collect()
    })?;
    let sum = sum_windows(&results);
    let mut lines = vec![
        format!("text         {}: {} windows of {context} tokens", args.data.display(), windows.len()),
        line("perplexity", &sum.run),
    ];
    lines.extend(sum.dense.iter().map(|dense| line("dense", dense)));
    lines.extend(difference(&sum, setup));
    Ok(Scores {
        examples: windows.len(),
        tokens: sum.run.tokens(),
        fields: fields(&sum),
        lines,
        sparsity: sum.run.sparsity,
        prompts: if setup.decode { HeadSparsity::default() } else { sum.run.sparsity },
        longest: context,
    })
}

fn line(name: &str, perplexity: &Perplexity) -> String {
    let error = give_or_take(perplexity.standard_error(), 4);
    format!("{name:12} {:.4} {error}over {} tokens", perplexity.value(), perplexity.tokens())
}

fn difference(sum: &WindowResult, setup: &Setup) -> Vec<String> {
    let (Some(dense), Some(comparison)) = (&sum.dense, &sum.comparison) else { return Vec::new() };
    let (mean, error) = comparison.log_likelihood_difference();
    let flips = format!(" ({} flips of {})", comparison.flips(), sum.run.tokens());
    vec![
        format!("difference   perplexity {:+.2} %", 100.0 * (sum.run.value() / dense.value() - 1.0)),
        comparison_line(comparison, setup) + &flips,
        format!("             log-likelihood {mean:+.5} {}nats a token", give_or_take(error, 5)),
    ]
}

fn fields(sum: &WindowResult) -> Map<String, Value> {
    let own = |perplexity: &Perplexity| {
        let mut fields = Map::new();
        fields.insert("perplexity".into(), json!(perplexity.value()));
        fields.insert("standard_error".into(), json!(perplexity.standard_error()));
        fields
    };
    let mut fields = own(&sum.run);
    if let (Some(dense), Some(comparison)) = (&sum.dense, &sum.comparison) {
        let (mean, error) = comparison.log_likelihood_difference();
        let more = [
            ("dense", own(dense).into()),
            ("kl", json!(comparison.kl())),
            ("top1_agreement", json!(comparison.top1_agreement())),
            ("flips", json!(comparison.flips())),
            ("perplexity_change", json!(sum.run.value() / dense.value() - 1.0)),
            ("log_likelihood_difference", json!(mean)),
            ("log_likelihood_difference_standard_error", json!(error)),
        ];
        fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
    fields
}
