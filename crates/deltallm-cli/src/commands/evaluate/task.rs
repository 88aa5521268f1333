//! Downstream tasks: examples with an answer.

use anyhow::Context;
use serde_json::json;

use super::lines::{comparison_line, give_or_take};
use super::resumed::{plan, run_all};
use super::{args::Args, scores::Scores};
use crate::{
    ANSWER_TOKENS, ChoiceExample, Dataset, Estimate, Examples, LastWordExample, LikelihoodExample, Question,
    Scored, Scorer, Setup, Summary, answer_questions, score_examples,
};

/// Examples that are scored together and logged at once.
const EXAMPLES_AT_ONCE: usize = 32;
/// Questions that are answered together: all their caches are in memory.
const QUESTIONS_AT_ONCE: usize = 16;

pub(super) fn run(args: &Args, setup: &Setup, dataset: &Dataset) -> anyhow::Result<Scores> {
    let (names, results) = match &dataset.examples {
        Examples::Choices(examples) => (ChoiceExample::METRICS, likelihoods(args, setup, dataset, examples)?),
        Examples::LastWord(examples) => {
            (LastWordExample::METRICS, likelihoods(args, setup, dataset, examples)?)
        }
        Examples::Squad(questions) => {
            let plan = plan(args, questions, QUESTIONS_AT_ONCE);
            let results = run_all(args, setup, &dataset.sha256, plan, &mut |range, progress| {
                answer_questions(setup, &questions[range], progress).with_context(|| of_data(args))
            });
            (Question::METRICS, results?)
        }
    };
    let summary = Summary::new(names, &results).with_context(|| of_data(args))?;
    let mut fields = summary.json();
    fields.insert("records".into(), json!(dataset.shape));
    let examples = results.len() - summary.skipped();
    Ok(Scores {
        examples,
        tokens: summary.tokens,
        fields,
        lines: lines(args, setup, &summary, examples),
        sparsity: summary.sparsity,
        prompts: summary.prompts,
        longest: summary.lengths.longest,
    })
}

fn likelihoods<E: LikelihoodExample>(
    args: &Args,
    setup: &Setup,
    dataset: &Dataset,
    examples: &[E],
) -> anyhow::Result<Vec<Scored>> {
    let plan = plan(args, examples, EXAMPLES_AT_ONCE);
    let mut scorer = Scorer::new(setup)?;
    run_all(args, setup, &dataset.sha256, plan, &mut |range, progress| {
        score_examples(&mut scorer, range.start, &examples[range], progress).with_context(|| of_data(args))
    })
}

/// Where an example comes from.
fn of_data(args: &Args) -> String {
    format!("--data {}", args.data.display())
}

fn lines(args: &Args, setup: &Setup, summary: &Summary, examples: usize) -> Vec<String> {
    let mut lines = vec![format!(
        "data         {}: {examples} examples, {} sequences of {:.1} tokens on average, {} at most",
        args.data.display(),
        summary.lengths.sequences,
        summary.mean_tokens(),
        summary.lengths.longest
    )];
    if args.shots > 0 {
        lines.push(format!("             {} solved examples come before every question", args.shots));
    }
    if let Some(first) = summary.first_skipped {
        lines.push(format!(
            "warning      {} examples cannot be scored and are in no number here; the first is example {}",
            summary.skipped(),
            first + 1
        ));
        lines.extend(summary.skipped.iter().map(|(why, examples)| format!("             {examples}: {why}")));
    }
    if summary.lengths.truncated > 0 {
        lines.push(format!(
            "             {} sequences were longer than the context and lost their beginning",
            summary.lengths.truncated
        ));
    }
    if summary.unfinished > 0 {
        lines.push(format!(
            "             {} answers were cut off after {ANSWER_TOKENS} tokens",
            summary.unfinished
        ));
    }
    lines.push(metrics_line("result", &summary.metrics, false));
    if let Some(dense) = &summary.dense {
        lines.push(metrics_line("dense", &dense.metrics, false));
        lines.push(metrics_line("difference", &dense.differences, true));
        lines.push(comparison_line(&dense.comparison, setup));
        lines.push(format!("             {} of {examples} predictions differ", dense.flips));
    }
    lines
}

/// Shares in per cent, log-likelihoods in nats.
fn metrics_line(name: &str, metrics: &[(&'static str, Estimate)], signed: bool) -> String {
    let metric = |(name, estimate): &(&str, Estimate)| {
        let (factor, unit, digits) =
            if *name == "log_likelihood" { (1.0, "nats", 4) } else { (100.0, "%", 2) };
        let (mean, error) = (factor * estimate.mean, factor * estimate.standard_error);
        let mean = if signed { format!("{mean:+.digits$}") } else { format!("{mean:.digits$}") };
        format!("{name} {mean} {}{unit}", give_or_take(error, digits))
    };
    format!("{name:12} {}", metrics.iter().map(metric).collect::<Vec<_>>().join(", "))
}
