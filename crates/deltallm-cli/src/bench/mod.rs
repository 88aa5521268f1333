//! What `bench` does: whole models on the clock, in interleaved rounds, ours and those of other engines that a program brings.

mod args;
mod engine;
pub mod machine;
mod ours;
mod phase;
mod report;
mod rounds;
mod text;
pub mod timing;

use std::time::Instant;

use anyhow::Context;
use deltallm::{Isa, KernelKind};

pub use args::Args;
pub use engine::{Engine, EngineName, Rival};
pub use phase::Phase;

use crate::measure::argmax;
use crate::{LoadedModel, Progress, format_bytes, note, peak_rss_bytes, print_json, print_line};
use ours::{Ours, kernel};
use report::{FirstToken, Report, header, line, rows};
use rounds::{Entry, Plan, measure};

/// Times our kernels, and those `rivals` that are named on the command line. The program began at `start`.
///
/// # Errors
/// For models, texts and lengths that do not fit together, and what the engines say.
pub fn run(args: &Args, rivals: &[Rival], start: Instant) -> anyhow::Result<()> {
    // This thread works in the pool: with one thread nothing is handed over.
    let threads = rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).use_current_thread();
    threads.build_global().context("cannot start the threads")?;
    match args.first_token {
        Some(tokens) => first_token(args, rivals, tokens as usize, start),
        None => time(args, rivals),
    }
}

fn time(args: &Args, rivals: &[Rival]) -> anyhow::Result<()> {
    let model = LoadedModel::open(args.model.as_deref())?;
    let tests = args.tests(model.graph.config().context_length)?;
    let longest = args.longest(&tests);
    let tokens = text::tokens(&model, args.text.as_deref(), longest)?;
    let mut entries: Vec<Entry> = Vec::new();
    for (index, name) in args.kernels.iter().enumerate() {
        anyhow::ensure!(
            !args.kernels[..index].contains(name),
            "--kernels: expected each kernel once, got {name} twice"
        );
        entries.push(entry(name, Some(&model), args, rivals, longest)?);
    }
    let mut report = Report {
        rows: Vec::new(),
        model: model.name.clone(),
        cpu: machine::cpu(),
        date: machine::date(),
        level: Isa::from_env()?.to_string(),
        threads: args.threads.into(),
        decode_tokens: args.decode_tokens.into(),
        repetitions: args.repetitions.into(),
    };
    print_header(&report, &entries)?;
    for (phase, prompt) in tests {
        let decoded = if phase == Phase::Decode { args.decode_tokens.into() } else { 0 };
        let plan = Plan { phase, prompt, decoded, repetitions: args.repetitions.into() };
        let mut progress = Progress::new("timing");
        let mut step = |round| progress.update(round, plan.repetitions + 1);
        let measured = measure(&mut entries, &tokens, &plan, &mut step)?;
        drop(progress);
        let rows = rows(&entries, &plan, &measured);
        rows.iter().try_for_each(|row| print_line(line(row)))?;
        report.rows.extend(rows);
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// What a user waits for who starts the program: the model, and the first new token.
fn first_token(args: &Args, rivals: &[Rival], prompt: usize, start: Instant) -> anyhow::Result<()> {
    let [name] = args.kernels.as_slice() else {
        anyhow::bail!(
            "--first-token: expected one kernel, got {}; name it with --kernels",
            args.kernels.len()
        );
    };
    // Another engine needs neither our model nor a tokenizer.
    let model = match name {
        EngineName::Rival(_) => None,
        EngineName::Ours { .. } => Some(LoadedModel::open(args.model.as_deref())?),
    };
    if let Some(model) = &model {
        check_length(prompt, model.graph.config().context_length, "the model's context")?;
    }
    let Entry { name: engine, engine: mut loaded, .. } = entry(name, model.as_ref(), args, rivals, prompt)?;
    let load = start.elapsed();
    let tokens = match &model {
        Some(model) => text::tokens(model, args.text.as_deref(), prompt)?,
        None => text::made_up(prompt),
    };
    let next = argmax(loaded.prefill(&tokens)?);
    let first_token = start.elapsed();
    let report = FirstToken {
        engine,
        prompt,
        load_ms: load.as_secs_f64() * 1e3,
        first_token_ms: first_token.as_secs_f64() * 1e3,
        next,
        peak_rss_bytes: peak_rss_bytes(),
    };
    print_line(format_args!(
        "{}: first token of a prompt of {prompt} after {:.1} ms, model loaded after {:.1} ms, at most {} resident",
        report.engine,
        report.first_token_ms,
        report.load_ms,
        report.peak_rss_bytes.map_or("?".to_owned(), format_bytes)
    ))?;
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

/// One who takes part, for sequences of up to `longest` tokens.
fn entry<'m>(
    name: &EngineName,
    model: Option<&'m LoadedModel>,
    args: &Args,
    rivals: &[Rival],
    longest: usize,
) -> anyhow::Result<Entry<'m>> {
    let (settings, engine): (String, Box<dyn Engine + 'm>) = match (name, model) {
        (EngineName::Ours { kind, store, precision }, Some(model)) => {
            let profile = args.profile.as_deref().filter(|_| *kind == KernelKind::Hybrid);
            let kernel = kernel(&model.graph, *kind, *store, *precision, profile)
                .with_context(|| format!("--kernels {name}"))?;
            kernel.warning_beyond_profile(longest).into_iter().for_each(note);
            (kernel.to_string(), Box::new(Ours::new(model.graph.clone(), kernel)?))
        }
        (EngineName::Ours { .. }, None) => anyhow::bail!("{name}: expected a model, got none"),
        (EngineName::Rival(name), _) => {
            let rival = rivals.iter().find(|rival| rival.name == name).with_context(|| {
                let others: String = rivals.iter().map(|rival| format!(", or {}", rival.name)).collect();
                format!(
                    "--kernels: expected dense, delta or hybrid with a store, such as hybrid-compact{others}, got {name}"
                )
            })?;
            check_length(longest, rival.longest, &format!("{name}'s positions"))?;
            let path = args.model.as_deref();
            let path = path.with_context(|| format!("--kernels {name}: expected --model FILE"))?;
            (rival.settings.to_owned(), (rival.open)(path)?)
        }
    };
    Ok(Entry { name: name.to_string(), settings, engine })
}

fn check_length(longest: usize, limit: usize, whose: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        longest <= limit,
        "--prompts, --depths: expected lengths (with decoded tokens) of at most {limit}, {whose}, got {longest}"
    );
    Ok(())
}

fn print_header(report: &Report, entries: &[Entry]) -> anyhow::Result<()> {
    let threads = if report.threads == 1 { "thread" } else { "threads" };
    print_line(format_args!(
        "machine            {}; {}; level {}, {} {threads}",
        report.cpu, report.date, report.level, report.threads
    ))?;
    print_line(format_args!(
        "model              {}; {} tokens decoded in a row",
        report.model, report.decode_tokens
    ))?;
    for entry in entries {
        print_line(format_args!("{:18} {}", entry.name, entry.settings))?;
    }
    print_line(header())
}
