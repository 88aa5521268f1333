//! Measures what delta attention costs in accuracy: perplexity and downstream tasks, alone or beside dense attention.
//!
//! `cargo run --release -- evaluate --task choices --data arc_easy.jsonl --compare dense`; `docs/evaluation.md`
//! explains tasks and results.

mod args;
mod lines;
mod perplexity;
mod resumed;
mod scores;
mod task;

use std::time::Instant;

use anyhow::ensure;
use deltallm::ExactWindow;
use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) use self::args::Args;
use crate::args::Baseline;
use crate::{
    ANSWER_TOKENS, Dataset, KernelKind, KernelSettings, LoadedModel, Setup, SkippedValues, TaskKind, note,
    print_json, read_dataset, read_text, take_shots,
};

/// Tokens in a window of perplexity, unless --context says otherwise.
const PERPLEXITY_CONTEXT: usize = 1024;

pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    // Read before the model: a wrong file is the more likely mistake, and is noticed at once.
    let (input, beginning) = Input::read(&args)?;
    let model = args.model.open()?;
    let kernel = args.kernel.resolve(&model.graph)?;
    if args.compare.is_some() {
        kernel.check_comparable()?;
    }
    ensure!(
        !args.decode || !matches!(kernel.spec().exact_window, ExactWindow::Block { .. }),
        "--decode: expected a window of so many keys, got one in blocks of a prompt, which there is none of; take --window N"
    );
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
        Input::Text(text) => perplexity::run(&args, &setup, text)?,
        Input::Records(dataset) => task::run(&args, &setup, dataset)?,
    };
    let seconds = start.elapsed().as_secs_f64();

    note(format_args!("model        {}", model.name));
    note(format_args!("kernel       {}", setup.kernel));
    scores.lines.iter().for_each(note);
    let skipped = SkippedValues::new(&scores.sparsity, &scores.prompts);
    if setup.kernel.kind() != KernelKind::Dense {
        lines::sparsity(&scores.sparsity, &skipped).iter().for_each(note);
        lines::nothing_approximated(&scores.sparsity).into_iter().for_each(note);
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
