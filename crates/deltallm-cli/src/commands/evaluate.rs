//! Measures what delta attention costs in accuracy: perplexity and downstream tasks, alone or beside dense attention.
//!
//! `cargo run --release -- evaluate --task choices --data arc_easy.jsonl --compare dense`; `docs/evaluation.md`
//! explains tasks and results.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use deltallm::core::HeadSparsity;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::args::{MOST, whole};
use crate::{
    ANSWER_TOKENS, ChoiceExample, CommonArgs, Comparison, Dataset, Estimate, Examples, KernelArgs,
    KernelKind, KernelSettings, LastWordExample, LikelihoodExample, LoadedModel, ModelArgs, ModelProfile,
    Perplexity, Plan, Question, ResumeLog, Resumed, Score, Scored, Scorer, Setup, SkippedValues, Summary,
    TaskKind, WindowResult, answer_questions, note, print_json, read_dataset, read_text, run_windows,
    score_examples, score_window, sha256_hex, sum_windows, take_shots,
};

/// Tokens in a window of perplexity, unless --context says otherwise.
const PERPLEXITY_CONTEXT: usize = 1024;
/// Examples that are scored together and logged at once.
const EXAMPLES_AT_ONCE: usize = 32;
/// Questions that are answered together: all their caches are in memory.
const QUESTIONS_AT_ONCE: usize = 16;

/// Measure a model with delta attention, alone or beside dense attention: perplexity and downstream tasks
#[derive(Debug, clap::Args)]
#[command(after_help = FIELDS)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// perplexity, choices, schema, last-word or squad
    #[arg(long, value_enum, hide_possible_values = true)]
    task: TaskKind,
    /// A text (perplexity), SQuAD 2.0 (squad) or JSON lines
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Score only the first N examples (perplexity: windows) [default: all]
    #[arg(long, value_name = "N", value_parser = whole(1..=u32::MAX))]
    limit: Option<u32>,
    /// Tokens in a window (perplexity; default 1024), or most tokens of a sequence (default: the model's context)
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST))]
    context: Option<usize>,
    /// Perplexity: attend one token at a time, as in generation
    #[arg(long)]
    decode: bool,
    /// Between context and continuation (choices, schema, last-word)
    #[arg(long, value_name = "TEXT", default_value = " ")]
    delimiter: String,
    /// Solved examples in front of every question (choices, schema, last-word): the last N records of --data, which are not
    /// scored then
    #[arg(long, value_name = "N", default_value = "0", value_parser = whole(0..=MOST))]
    shots: usize,
    /// Take the solved examples from the beginning of this file instead
    #[arg(long, value_name = "FILE")]
    shots_from: Option<PathBuf>,
    /// Run the same with exact attention too
    #[arg(long, value_name = "KERNEL")]
    compare: Option<Baseline>,
    /// Log of examples that are done; begun if there is none, continued if there is
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

const FIELDS: &str = "\
Records, one JSON object a line:
  choices    query, choices, gold: which choice is the most probable continuation
  schema     context_options, continuation, gold: which context makes the continuation most probable
  last-word  context, continuation; or (GSM8K) context, chain_of_thought, answer: would greedy decoding write it

With --json accuracy, f1 and exact_match are in 0..1, each with its standard error. With --compare dense, kl and
top1_agreement are over the scored positions (squad: every token that exact attention generates, read by both), and
flips counts the examples whose prediction differs. Nothing is decoded in choices, schema, last-word and perplexity: there --phases prefill
is the same as both.";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Baseline {
    Dense,
}

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    // Read before the model: a wrong file is the more likely mistake, and is noticed at once.
    let (input, beginning) = Input::read(&args)?;
    let model = args.model.open()?;
    let kernel = args.kernel.resolve(&model.graph)?;
    if args.compare.is_some() {
        kernel.check_comparable()?;
    }
    let setup = Setup {
        context: context(&args, &model)?,
        dense: args.compare.map(|Baseline::Dense| kernel.dense()),
        beginning,
        delimiter: args.delimiter.clone(),
        decode: args.decode,
        kernel,
        model: &model,
    };
    let start = Instant::now();
    let scores = match &input {
        Input::Text(text) => perplexity(&args, &setup, text)?,
        Input::Records(dataset) => task(&args, &setup, dataset)?,
    };
    let seconds = start.elapsed().as_secs_f64();

    note(format_args!("model        {}", model.name));
    note(format_args!("kernel       {}", setup.kernel));
    scores.lines.iter().for_each(note);
    let skipped = SkippedValues::new(&scores.sparsity, &scores.prompts);
    if setup.kernel.kind() != KernelKind::Dense {
        sparsity_lines(&scores.sparsity, &skipped).iter().for_each(note);
        nothing_approximated(&scores.sparsity).into_iter().for_each(note);
        setup.kernel.warning_beyond_profile(scores.longest).into_iter().for_each(note);
    }
    note(format_args!("time         {seconds:.1} s"));
    if args.common.json {
        print_json(&Report {
            task: args.task,
            shots: args.shots,
            examples: scores.examples,
            tokens: scores.tokens,
            fields: scores.fields,
            zero_fraction: scores.sparsity.zero_fraction(),
            sparsity: scores.sparsity.sparsity(),
            exact_share: scores.sparsity.exact_share(),
            skipped,
            model: &model.name,
            kernel: setup.kernel.kind(),
            beyond_profile: setup.kernel.is_beyond_profile(scores.longest),
            settings: setup.kernel.settings(),
            context: setup.context,
            threads: rayon::current_num_threads(),
            seconds,
        })?;
    }
    Ok(())
}

/// What `--data` holds.
enum Input {
    Text(String),
    Records(Dataset),
}

impl Input {
    /// With the solved examples that come before every question.
    fn read(args: &Args) -> anyhow::Result<(Self, String)> {
        let task = args.task;
        if task == TaskKind::Perplexity {
            return Ok((Self::Text(read_text("--data", &args.data)?), String::new()));
        }
        let mut dataset = read_dataset("--data", &args.data, task)?;
        let from =
            args.shots_from.as_ref().map(|path| read_dataset("--shots-from", path, task)).transpose()?;
        let beginning = match args.shots {
            0 => String::new(),
            shots => take_shots(shots, &mut dataset, from, &args.delimiter)?,
        };
        Ok((Self::Records(dataset), beginning))
    }
}

fn context(args: &Args, model: &LoadedModel) -> anyhow::Result<usize> {
    let most = model.graph.config().context_length;
    let (least, default) = match args.task {
        TaskKind::Perplexity => (2, PERPLEXITY_CONTEXT),
        // An answer, and at least one token of its prompt.
        TaskKind::Squad => (ANSWER_TOKENS + 1, most),
        _ => (2, most),
    };
    let context = args.context.unwrap_or(default);
    ensure!(
        (least..=most).contains(&context),
        "--context: expected {least} to {most} tokens, the model's context, got {context}"
    );
    Ok(context)
}

/// What a task came to.
struct Scores {
    examples: usize,
    tokens: usize,
    /// For programs: what differs from task to task.
    fields: Map<String, Value>,
    /// For people.
    lines: Vec<String>,
    sparsity: HeadSparsity,
    /// What came of prompts; the rest came of generated tokens, or of text attended as such.
    prompts: HeadSparsity,
    /// Tokens of the longest text.
    longest: usize,
}

/// Runs the examples that are wanted, those in the log of an earlier run excepted.
fn run_all<R: Serialize + DeserializeOwned>(
    args: &Args,
    setup: &Setup,
    data_sha256: &str,
    plan: Plan,
    score: &mut Score<R>,
) -> anyhow::Result<Vec<R>> {
    let log = match &args.resume {
        Some(path) => Some(ResumeLog::open(path, &identity(args, setup, data_sha256)?)?),
        None => None,
    };
    let Resumed { results, from_log } = run_windows(plan, log, score)?;
    if let Some(path) = args.resume.as_ref().filter(|_| from_log > 0) {
        note(format_args!(
            "resumed      {from_log} of {} examples are from {}",
            plan.examples,
            path.display()
        ));
    }
    Ok(results)
}

/// All that an example's result depends on.
fn identity(args: &Args, setup: &Setup, data_sha256: &str) -> anyhow::Result<Value> {
    let config = setup.model.graph.config();
    let settings = setup.kernel.settings();
    let hash = |profile: &ModelProfile| anyhow::Ok(sha256_hex(&serde_json::to_vec(&profile.settings)?));
    let profile_sha256 = setup.kernel.profile().map(hash).transpose()?;
    let beginning_sha256 = || sha256_hex(setup.beginning.as_bytes());
    let shots = (args.shots > 0).then(|| json!({"count": args.shots, "sha256": beginning_sha256()}));
    let bytes = args.model.path().and_then(|path| std::fs::metadata(path).ok()).map(|file| file.len());
    Ok(json!({
        "model": {"name": setup.model.name, "fingerprint": config.fingerprint().0, "bytes": bytes},
        "linear": args.model.linear,
        "task": args.task,
        "data_sha256": data_sha256,
        "kernel": setup.kernel.kind(),
        // Through text, like what it will be compared with.
        "settings": serde_json::from_str::<Value>(&serde_json::to_string(&settings)?)?,
        "profile_sha256": profile_sha256,
        "delimiter": setup.delimiter,
        "shots": shots,
        "context": setup.context,
        "decode": setup.decode,
        "compare": setup.dense.as_ref().map(|dense| dense.kind()),
    }))
}

/// As many examples as are wanted, so many at once.
fn plan<T>(args: &Args, examples: &[T], window: usize) -> Plan {
    let limit = args.limit.map_or(examples.len(), |limit| limit as usize);
    Plan { examples: examples.len().min(limit), window, steps: 1 }
}

fn perplexity(args: &Args, setup: &Setup, text: &str) -> anyhow::Result<Scores> {
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
        perplexity_line("perplexity", &sum.run),
    ];
    lines.extend(sum.dense.iter().map(|dense| perplexity_line("dense", dense)));
    lines.extend(perplexity_difference(&sum, setup));
    Ok(Scores {
        examples: windows.len(),
        tokens: sum.run.tokens(),
        fields: perplexity_fields(&sum),
        lines,
        sparsity: sum.run.sparsity,
        prompts: if setup.decode { HeadSparsity::default() } else { sum.run.sparsity },
        longest: context,
    })
}

fn perplexity_line(name: &str, perplexity: &Perplexity) -> String {
    let error = give_or_take(perplexity.standard_error(), 4);
    format!("{name:12} {:.4} {error}over {} tokens", perplexity.value(), perplexity.tokens())
}

/// A standard error behind its number. One example alone says nothing about its spread.
fn give_or_take(error: f64, digits: usize) -> String {
    if error.is_finite() { format!("± {error:.digits$} ") } else { String::new() }
}

fn perplexity_difference(sum: &WindowResult, setup: &Setup) -> Vec<String> {
    let (Some(dense), Some(comparison)) = (&sum.dense, &sum.comparison) else { return Vec::new() };
    let (mean, error) = comparison.log_likelihood_difference();
    let flips = format!(" ({} flips of {})", comparison.flips(), sum.run.tokens());
    vec![
        format!("difference   perplexity {:+.2} %", 100.0 * (sum.run.value() / dense.value() - 1.0)),
        comparison_line(comparison, setup) + &flips,
        format!("             log-likelihood {mean:+.5} {}nats a token", give_or_take(error, 5)),
    ]
}

fn comparison_line(comparison: &Comparison, setup: &Setup) -> String {
    format!(
        "             KL(dense || {}) {:.5} nats, same top token {:.2} %",
        setup.kernel.kind(),
        comparison.kl(),
        100.0 * comparison.top1_agreement()
    )
}

fn perplexity_fields(sum: &WindowResult) -> Map<String, Value> {
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

fn task(args: &Args, setup: &Setup, dataset: &Dataset) -> anyhow::Result<Scores> {
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
        lines: task_lines(args, setup, &summary, examples),
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

fn task_lines(args: &Args, setup: &Setup, summary: &Summary, examples: usize) -> Vec<String> {
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

fn sparsity_lines(sparsity: &HeadSparsity, skipped: &SkippedValues) -> [String; 2] {
    let percent = |x: f64| format!("{:.1} %", 100.0 * x);
    [
        format!(
            "sparsity     zero fraction {}, exact pairs {}, sparsity as the paper counts it {}",
            percent(sparsity.zero_fraction()),
            percent(sparsity.exact_share()),
            percent(sparsity.sparsity())
        ),
        format!("             {skipped}"),
    ]
}

/// A warning where the numbers are those of dense attention.
fn nothing_approximated(sparsity: &HeadSparsity) -> Option<&'static str> {
    if sparsity.pairs > 0 && sparsity.exact_pairs == sparsity.pairs {
        return Some(
            "warning      nothing was approximated: every text was short enough to be attended exactly; take longer ones, or \
             --exact-prompt 0",
        );
    }
    let nothing = sparsity.nonzeros == sparsity.elements && sparsity.skipped_values == 0;
    nothing.then_some(
        "warning      nothing was approximated: no delta was left out and no value skipped; take a higher --theta or \
         --target-sparsity, or a --skip-margin",
    )
}

/// The result for programs.
#[derive(Serialize)]
struct Report<'a> {
    task: TaskKind,
    /// Solved examples in front of every question.
    shots: usize,
    examples: usize,
    tokens: usize,
    #[serde(flatten)]
    fields: Map<String, Value>,
    zero_fraction: f64,
    sparsity: f64,
    exact_share: f64,
    #[serde(flatten)]
    skipped: SkippedValues,
    model: &'a str,
    kernel: KernelKind,
    /// Whether a text is longer than those that the profile was measured on.
    beyond_profile: bool,
    settings: KernelSettings,
    context: usize,
    threads: usize,
    seconds: f64,
}
