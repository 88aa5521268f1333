//! Continues a prompt with delta attention and says what that saves.
//!
//! `cargo run --release -- generate` runs the embedded model beside dense attention; `--help` lists the rest.

mod args;
mod json;
mod prompt;
mod run;
mod summary;

use deltallm::KvStore;
use deltallm::models::Session;

pub(crate) use self::args::Args;
use self::json::Report;
use self::prompt::Prompt;
use self::run::{Difference, Run};
use crate::{KernelChoice, KernelKind, LoadedModel, Stop, interrupted, note, print_json, print_line};

/// Tokens that every kernel reads before it is timed beside another one.
const WARM_UP: usize = 64;

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    let model = args.model.open()?;
    let demonstrates = args.demonstrates() && args.kernel.kind() != KernelKind::Dense;
    if demonstrates {
        args.kernel = args.kernel.or_store(KvStore::Compact);
    }
    let kernel = args.kernel.resolve(&model.graph)?;
    anyhow::ensure!(
        !args.prompt_lookup || model.graph.weights().treats_rows_alike(),
        "--prompt-lookup: has no effect where a layer or the head is held in f32, f16 or bf16, which add up several tokens in another \
         order than one; leave it out, or use a model that is quantised throughout, with --linear packed"
    );
    if args.compare.is_some() {
        kernel.check_comparable()?;
    }
    let limit = args.memory.resolve(&kernel)?;
    let prompt = Prompt::new(&args, &model)?;
    if let Some(limit) = &limit {
        limit.check_prompt(model.graph.config(), &kernel, prompt.tokens.len())?;
        if args.verbose {
            note(limit.describe(model.graph.config(), &kernel).trim_end());
        }
    }
    let prompts = args.memory.prompt_cache()?;

    let kernels = match args.compare {
        None if !demonstrates => vec![kernel],
        _ => vec![kernel.clone(), kernel.dense()],
    };
    if kernels.len() > 1 {
        kernels.iter().try_for_each(|kernel| warm_up(&model, kernel, &prompt.tokens))?;
    }
    let mut runs = Vec::new();
    for kernel in &kernels {
        // What has been asked for has ended.
        if !runs.is_empty() && interrupted() {
            break;
        }
        if args.compare.is_some() {
            print_line(format_args!("=== {kernel} ==="))?;
        }
        // What it is compared with is not limited; it is shown if it was asked for.
        let limit = limit.filter(|_| runs.is_empty());
        let prompts = prompts.as_ref().filter(|_| runs.is_empty());
        let shown = runs.is_empty() || args.compare.is_some();
        runs.push(Run::new(&model, kernel, (limit, prompts), &prompt, &args, shown)?);
    }

    // A comparison with half a text says nothing.
    if runs.len() > 1 {
        runs.pop_if(|dense| dense.generation.stop == Stop::Interrupted);
    }
    let [run, dense @ ..] = runs.as_slice() else { return Ok(()) };
    let difference = dense.first().map(|dense| Difference::find(&model, run, dense)).transpose()?;
    note("");
    if args.verbose {
        summary::describe(&model, &runs, difference.as_ref());
    }
    run.kernel.warning_beyond_profile(run.generation.cached_tokens).into_iter().for_each(note);
    note(summary::line(run, dense.first(), difference.as_ref()));
    if args.common.json {
        print_json(&Report::new(&model, run, dense.first(), difference))?;
    }
    if let Some(refused) = &run.generation.refused {
        anyhow::bail!(
            "--kv-budget: expected enough for {} more tokens, got what {} tokens take: {refused}; give more, or choose a lower \
             --max-tokens or another --at-limit",
            args.max_tokens as usize - run.generation.tokens.len(),
            run.generation.cached_tokens
        );
    }
    Ok(())
}

/// Lets a kernel, and the model around it, do everything once: the first of two runs would pay for both.
fn warm_up(model: &LoadedModel, kernel: &KernelChoice, tokens: &[u32]) -> anyhow::Result<()> {
    let mut session = Session::new(model.graph.clone(), |layer| kernel.make(layer))?;
    session.prefill(&tokens[..tokens.len().min(WARM_UP)])?;
    session.decode(tokens[0])?;
    Ok(())
}
