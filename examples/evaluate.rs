//! Measures what delta attention costs in accuracy: perplexity, alone or beside dense attention.
//!
//! `cargo run --release --example evaluate -- --task perplexity --data TEXT --compare dense`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use deltallm::models::Session;
use deltallm_examples::{
    CommonArgs, Comparison, KernelArgs, KernelChoice, KernelKind, KernelSettings, LoadedModel, Perplexity,
    Progress, main_with, print_json, read_text, score_rows, windows,
};
use ndarray::Array2;
use serde::Serialize;

/// Tokens whose logits are in memory at a time, once per kernel.
const CHUNK: usize = 256;

/// Measure a model's perplexity with delta attention, alone or beside dense attention.
#[derive(Debug, Parser)]
#[command(name = "evaluate", version)]
struct Args {
    /// GGUF file, safetensors file or model directory [default: the embedded model]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<PathBuf>,
    /// What to measure: perplexity
    #[arg(long, value_parser = parse_task)]
    task: Task,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Most windows to score [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Tokens in a window
    #[arg(long, value_name = "N", default_value_t = 1024)]
    context: usize,
    /// Score the same windows with exact attention too
    #[arg(long, value_name = "KERNEL")]
    compare: Option<Baseline>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Baseline {
    Dense,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum Task {
    Perplexity,
}

fn parse_task(name: &str) -> Result<Task, String> {
    match name {
        "perplexity" => Ok(Task::Perplexity),
        "choices" | "schema" | "last-word" | "squad" => {
            Err("not in this version yet: expected perplexity".into())
        }
        _ => Err("unknown task: expected perplexity".into()),
    }
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    let text = read_text("--data", &args.data)?;
    let model = LoadedModel::open(args.model.as_deref())?;
    let kernel = args.kernel.resolve(&model.llama)?;
    let most = model.llama.config().context_length;
    anyhow::ensure!(
        (2..=most).contains(&args.context),
        "--context: expected 2 to {most} tokens, the model's context, got {}",
        args.context
    );
    let tokens = model.encode(&text)?;
    let windows = windows(&tokens, args.context, args.limit.map(|limit| limit as usize));
    anyhow::ensure!(
        !windows.is_empty(),
        "--data {}: expected at least one window of {} tokens, got a text of {}; use a longer text or a smaller --context",
        args.data.display(),
        args.context,
        tokens.len()
    );

    let start = Instant::now();
    let baseline = args.compare.map(|Baseline::Dense| kernel.dense());
    let mut scores = Scores { dense: baseline.as_ref().map(|_| Default::default()), ..Scores::default() };
    let mut progress = Progress::new("scoring");
    for (index, window) in windows.iter().enumerate() {
        let mut step = |done| progress.update(index * args.context + done, windows.len() * args.context);
        scores.add_window(&model, &kernel, baseline.as_ref(), window, &mut step)?;
    }
    drop(progress);
    let seconds = start.elapsed().as_secs_f64();

    eprintln!("model        {}", model.name);
    eprintln!("text         {}: {} windows of {} tokens", args.data.display(), windows.len(), args.context);
    describe(&kernel, &scores.kernel);
    if let (Some(baseline), Some((dense, comparison))) = (&baseline, &scores.dense) {
        describe(baseline, dense);
        let (mean, error) = comparison.log_likelihood_difference();
        eprintln!(
            "difference   perplexity {:+.2} %, KL(dense || {}) {:.5} nats, same top token {:.2} % ({} flips of {})",
            100.0 * change(&scores.kernel, dense),
            kernel.kind(),
            comparison.kl(),
            100.0 * comparison.top1_agreement(),
            comparison.flips(),
            scores.kernel.tokens()
        );
        eprintln!("             log-likelihood {mean:+.5} ± {error:.5} nats a token");
    }
    eprintln!("time         {seconds:.1} s");
    if args.common.json {
        print_json(&report(&args, &model, &kernel, windows.len(), &scores, seconds))?;
    }
    Ok(())
}

#[derive(Default)]
struct Scores {
    kernel: Perplexity,
    dense: Option<(Perplexity, Comparison)>,
}

impl Scores {
    /// Scores every token of a window but its first. Both kernels go through the window side by side, so that the
    /// logits of one chunk each are all that is in memory.
    fn add_window(
        &mut self,
        model: &LoadedModel,
        kernel: &KernelChoice,
        baseline: Option<&KernelChoice>,
        window: &[u32],
        progress: &mut dyn FnMut(usize),
    ) -> anyhow::Result<()> {
        let session = |choice: &KernelChoice| {
            let mut session = Session::new(&model.llama, |layer| choice.make(layer))?;
            session.set_chunk(CHUNK);
            anyhow::Ok(session)
        };
        let mut run = session(kernel)?;
        let mut dense_run = baseline.map(session).transpose()?;
        let mut failure = None;
        run.score(window, &mut |done, logits| {
            let start = done - logits.nrows();
            let next = &window[start + 1..window.len().min(done + 1)];
            let scores = score_rows(logits.view(), next);
            self.kernel.add(&scores);
            if let (Some(run), Some((perplexity, comparison))) = (&mut dense_run, &mut self.dense) {
                match logits_of(run, &window[start..done]) {
                    Ok(dense_logits) => {
                        let dense = score_rows(dense_logits.view(), next);
                        perplexity.add(&dense);
                        comparison.add((dense_logits.view(), &dense), (logits.view(), &scores));
                    }
                    Err(error) => failure = Some(error),
                }
            }
            progress(done);
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        self.kernel.sparsity.add(&run.stats().total());
        Ok(())
    }
}

/// The logits of the next tokens, at most a chunk of them, `[tokens, vocab_size]`.
fn logits_of(session: &mut Session, tokens: &[u32]) -> anyhow::Result<Array2<f32>> {
    let mut result = Array2::default((0, 0));
    session.score(tokens, &mut |_, logits| result = logits)?;
    Ok(result)
}

/// Relative change of perplexity against dense attention.
fn change(kernel: &Perplexity, dense: &Perplexity) -> f64 {
    kernel.value() / dense.value() - 1.0
}

fn describe(kernel: &KernelChoice, scores: &Perplexity) {
    eprintln!("kernel       {kernel}");
    eprintln!("perplexity   {:.4} over {} tokens", scores.value(), scores.tokens());
    if kernel.kind() != KernelKind::Dense {
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let sparsity = &scores.sparsity;
        eprintln!(
            "sparsity     zero fraction {}, exact pairs {}, sparsity as the paper counts it {}, values skipped {}",
            percent(sparsity.zero_fraction()),
            percent(sparsity.exact_share()),
            percent(sparsity.sparsity()),
            percent(sparsity.values_skipped())
        );
    }
}

/// The result for programs.
#[derive(Serialize)]
struct Report<'a> {
    task: Task,
    examples: usize,
    tokens: usize,
    perplexity: f64,
    #[serde(flatten)]
    comparison: Option<Compared>,
    zero_fraction: f64,
    sparsity: f64,
    exact_share: f64,
    values_skipped: f64,
    model: &'a str,
    kernel: KernelKind,
    settings: KernelSettings,
    context: usize,
    threads: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct Compared {
    dense: Dense,
    /// Mean KL(dense || this), nats.
    kl: f64,
    top1_agreement: f64,
    /// Tokens whose most probable prediction differs.
    flips: usize,
    /// Relative to dense attention.
    perplexity_change: f64,
    /// Mean over the tokens, nats.
    log_likelihood_difference: f64,
    log_likelihood_difference_standard_error: f64,
}

#[derive(Serialize)]
struct Dense {
    perplexity: f64,
}

fn report<'a>(
    args: &Args,
    model: &'a LoadedModel,
    kernel: &KernelChoice,
    examples: usize,
    scores: &Scores,
    seconds: f64,
) -> Report<'a> {
    let Perplexity { sparsity, .. } = &scores.kernel;
    let comparison = scores.dense.as_ref().map(|(dense, comparison)| {
        let (mean, error) = comparison.log_likelihood_difference();
        Compared {
            dense: Dense { perplexity: dense.value() },
            kl: comparison.kl(),
            top1_agreement: comparison.top1_agreement(),
            flips: comparison.flips(),
            perplexity_change: change(&scores.kernel, dense),
            log_likelihood_difference: mean,
            log_likelihood_difference_standard_error: error,
        }
    });
    Report {
        task: args.task,
        examples,
        tokens: scores.kernel.tokens(),
        perplexity: scores.kernel.value(),
        comparison,
        zero_fraction: sparsity.zero_fraction(),
        sparsity: sparsity.sparsity(),
        exact_share: sparsity.exact_share(),
        values_skipped: sparsity.values_skipped(),
        model: &model.name,
        kernel: kernel.kind(),
        settings: kernel.settings(),
        context: args.context,
        threads: rayon::current_num_threads(),
        seconds,
    }
}
