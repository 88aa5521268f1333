//! Continues a prompt with delta attention and reports speed, sparsity and bytes.
//!
//! `cargo run --release --example generate` runs the embedded model; `--help` lists the rest.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use deltallm::models::{Narrowed, SamplerConfig, Session};
use deltallm_examples::{
    CommonArgs, Generation, KernelArgs, KernelChoice, KernelKind, KernelSettings, LimitPolicy, LoadedModel,
    MemoryArgs, MemoryLimit, ModelArgs, Stop, dense_f16_bytes, first_difference, format_bytes, generate,
    interrupted, main_with, peak_rss_bytes, print_json, stop_on_ctrl_c,
};
use serde::Serialize;

const DEFAULT_PROMPT: &str = "Once upon a time there was";
const DEFAULT_QUESTION: &str = "Tell me a short story about a fox and a river.";

/// Continue a prompt with delta attention; report speed, sparsity and bytes.
#[derive(Debug, Parser)]
#[command(name = "generate", version)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue, or with --chat the question [default: the beginning of a story]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Put the prompt through the model's chat template
    #[arg(long)]
    chat: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Run the same prompt with exact attention too, and show where the texts part
    #[arg(long, value_name = "KERNEL")]
    compare: Option<Baseline>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    memory: MemoryArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Baseline {
    Dense,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// 0 always takes the most probable token
    #[arg(long, value_name = "X", default_value_t = 0.7)]
    temperature: f32,
    /// Only the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Only the fewest most probable tokens that together have this probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Only tokens at least this probable relative to the most probable one; 0 is off
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Makes tokens that have occurred less probable; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    let model = args.model.open()?;
    let kernel = args.kernel.resolve(&model.graph)?;
    let limit = args.memory.resolve(&kernel)?;
    let prompt = Prompt::new(&args, &model)?;
    if let Some(limit) = &limit {
        limit.check_prompt(model.graph.config(), &kernel, prompt.tokens.len())?;
        eprint!("{}", limit.describe(model.graph.config(), &kernel));
    }
    stop_on_ctrl_c()?;

    let kernels = match args.compare {
        Some(Baseline::Dense) => vec![kernel.clone(), kernel.dense()],
        None => vec![kernel],
    };
    let mut runs = Vec::new();
    for kernel in &kernels {
        // What has been asked for has ended; a comparison with half a text says nothing.
        if !runs.is_empty() && interrupted() {
            break;
        }
        if kernels.len() > 1 {
            heading(&format!("=== {kernel} ==="))?;
        }
        // What it is compared with is not limited.
        let limit = limit.filter(|_| runs.is_empty());
        runs.push(Run::new(&model, kernel, limit, &prompt, &args)?);
    }

    let [run, dense @ ..] = runs.as_slice() else { return Ok(()) };
    let config = model.graph.config();
    eprintln!();
    eprintln!(
        "model        {}: {} layers, {} heads, {} kv heads, head_dim {}, context {}",
        model.name, config.layers, config.heads, config.kv_heads, config.head_dim, config.context_length
    );
    eprintln!(
        "weights      {} in memory, read and packed in {:.2} s",
        format_bytes(model.graph.weights().bytes() as u64),
        model.loading.as_secs_f64()
    );
    runs.iter().for_each(Run::describe);
    if let Some(bytes) = peak_rss_bytes() {
        eprintln!("memory       {} at the peak, model included", format_bytes(bytes));
    }
    let difference = dense.first().map(|dense| Difference::find(&model, run, dense)).transpose()?;
    if let Some(difference) = &difference {
        match difference {
            Some(d) => eprintln!(
                "difference   token {} of the text is {:?}, with dense attention {:?}",
                d.index, d.token, d.dense_token
            ),
            None => eprintln!("difference   none: the same tokens as with dense attention"),
        }
    }
    if args.common.json {
        print_json(&Report {
            model: &model.name,
            measured: run.measured(),
            weights_bytes: model.graph.weights().bytes(),
            loading_seconds: model.loading.as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            threads: rayon::current_num_threads(),
            dense: dense.first().map(Run::measured),
            first_difference: difference,
        })?;
    }
    let cached = run.generation.cached_tokens;
    anyhow::ensure!(
        run.generation.stop != Stop::BudgetExhausted,
        "--kv-budget: expected enough for {} more tokens, got what {cached} tokens take; give more, or choose a lower \
         --max-tokens or another --at-limit",
        args.max_tokens as usize - run.generation.tokens.len()
    );
    Ok(())
}

fn heading(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// What the model is to continue.
struct Prompt {
    tokens: Vec<u32>,
    /// Shown before the continuation; a question is not.
    shown: Option<String>,
}

impl Prompt {
    fn new(args: &Args, model: &LoadedModel) -> anyhow::Result<Self> {
        let default = if args.chat { DEFAULT_QUESTION } else { DEFAULT_PROMPT };
        let text = args.prompt.as_deref().unwrap_or(default);
        anyhow::ensure!(
            !text.is_empty(),
            "--prompt: expected a text of at least one token, got an empty one"
        );
        Ok(match args.chat {
            true => Self { tokens: model.encode_chat(text)?, shown: None },
            false => Self { tokens: model.encode(text)?, shown: Some(text.to_owned()) },
        })
    }
}

/// One kernel's continuation.
struct Run {
    kernel: KernelChoice,
    limit: Option<MemoryLimit>,
    generation: Generation,
    prompt_tokens: usize,
    dense_f16_bytes: usize,
}

impl Run {
    fn new(
        model: &LoadedModel,
        kernel: &KernelChoice,
        limit: Option<MemoryLimit>,
        prompt: &Prompt,
        args: &Args,
    ) -> anyhow::Result<Self> {
        let SamplingArgs { temperature, top_k, top_p, min_p, repetition_penalty, seed } = args.sampling;
        let sampling = SamplerConfig::default()
            .with_repetition_penalty(repetition_penalty)
            .with_temperature(temperature)
            .with_top_k(top_k)
            .with_top_p(top_p)
            .with_min_p(min_p)
            .with_seed(seed);
        let mut stdout = std::io::stdout();
        let mut shown = prompt.shown.as_deref();
        let mut write = |text: &str| -> anyhow::Result<()> {
            // With the first new text, so that a prompt which is refused is not printed.
            write!(stdout, "{}{text}", shown.take().unwrap_or_default())?;
            stdout.flush()?;
            Ok(())
        };
        let session = match limit {
            Some(limit) => limit.session(model, kernel)?,
            None => Session::new(model.graph.clone(), |layer| kernel.make(layer))?,
        };
        let generation = generate(
            model,
            session,
            &prompt.tokens,
            prompt.shown.is_some(),
            sampling,
            args.max_tokens as usize,
            &mut write,
        )?;
        write("\n")?;
        let dense_f16_bytes = dense_f16_bytes(model.graph.config(), generation.cached_tokens);
        let (kernel, prompt_tokens) = (kernel.clone(), prompt.tokens.len());
        Ok(Self { kernel, limit, generation, prompt_tokens, dense_f16_bytes })
    }

    fn prefill_tokens_per_second(&self) -> f64 {
        self.prompt_tokens as f64 / self.generation.prefill.as_secs_f64()
    }

    /// The report for people.
    fn describe(&self) {
        let Generation { tokens, stop, footprint, sparsity, .. } = &self.generation;
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let bytes = |x: usize| format_bytes(x as u64);
        eprintln!("kernel       {}", self.kernel);
        eprintln!(
            "prompt       {} tokens at {:.1} tokens/s; first new token after {:.2} s",
            self.prompt_tokens,
            self.prefill_tokens_per_second(),
            self.generation.first_token.as_secs_f64()
        );
        match self.generation.decode_tokens_per_second() {
            Some(speed) => eprintln!("generated    {} tokens at {speed:.1} tokens/s ({stop})", tokens.len()),
            None => eprintln!("generated    {} tokens ({stop})", tokens.len()),
        }
        if self.kernel.kind() != KernelKind::Dense {
            eprintln!(
                "sparsity     zero fraction {}, sparsity as the paper counts it {}, values skipped {}",
                percent(sparsity.zero_fraction()),
                percent(sparsity.sparsity()),
                percent(sparsity.values_skipped())
            );
        }
        eprintln!(
            "cache        {} for {} tokens: keys {}, values {}, exact window {}, tables {}",
            bytes(footprint.total()),
            self.generation.cached_tokens,
            bytes(footprint.keys),
            bytes(footprint.values),
            bytes(footprint.window),
            bytes(footprint.bookkeeping)
        );
        eprintln!(
            "             {} of the {} that a dense f16 cache takes",
            percent(footprint.total() as f64 / self.dense_f16_bytes as f64),
            bytes(self.dense_f16_bytes)
        );
        if let Some(MemoryLimit { bytes: limit, policy }) = self.limit {
            let narrowed = match self.generation.narrowed {
                Narrowed { times: 0, .. } => String::new(),
                Narrowed { times, bytes: freed } => {
                    format!("; {policy} helped {times} times and gave {} back", bytes(freed))
                }
            };
            eprintln!("budget       {} of {} used{narrowed}", bytes(footprint.total()), bytes(limit));
        }
    }

    fn measured(&self) -> Measured<'_> {
        let Generation { tokens, text, stop, footprint, sparsity, first_token, .. } = &self.generation;
        Measured {
            kernel: self.kernel.kind(),
            prompt_tokens: self.prompt_tokens,
            generated_tokens: tokens.len(),
            text,
            prefill_tokens_per_second: self.prefill_tokens_per_second(),
            decode_tokens_per_second: self.generation.decode_tokens_per_second(),
            zero_fraction: sparsity.zero_fraction(),
            sparsity: sparsity.sparsity(),
            values_skipped: sparsity.values_skipped(),
            kv_bytes: footprint.total(),
            kv_bytes_dense_f16: self.dense_f16_bytes,
            stop: *stop,
            time_to_first_token_seconds: first_token.as_secs_f64(),
            budget: self.limit.map(|MemoryLimit { bytes, policy }| BudgetReport {
                kv_budget_bytes: bytes,
                at_limit: policy,
                times_narrowed: self.generation.narrowed.times,
            }),
            settings: self.kernel.settings(),
        }
    }
}

/// The first token in which the texts of two kernels differ.
#[derive(Serialize)]
struct Difference {
    /// Counted from 0, the first new token.
    index: usize,
    token: String,
    dense_token: String,
}

impl Difference {
    fn find(model: &LoadedModel, run: &Run, dense: &Run) -> anyhow::Result<Option<Self>> {
        let (a, b) = (&run.generation.tokens, &dense.generation.tokens);
        let Some(index) = first_difference(a, b) else { return Ok(None) };
        let text = |id| model.tokenizer.token_text(id).map(|text| text.into_owned());
        Ok(Some(Self { index, token: text(a[index])?, dense_token: text(b[index])? }))
    }
}

/// The result for programs.
#[derive(Serialize)]
struct Report<'a> {
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

#[derive(Serialize)]
struct Measured<'a> {
    kernel: KernelKind,
    prompt_tokens: usize,
    generated_tokens: usize,
    text: &'a str,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: Option<f64>,
    zero_fraction: f64,
    sparsity: f64,
    values_skipped: f64,
    kv_bytes: usize,
    kv_bytes_dense_f16: usize,
    stop: Stop,
    time_to_first_token_seconds: f64,
    /// Absent without a budget.
    #[serde(flatten)]
    budget: Option<BudgetReport>,
    settings: KernelSettings,
}

#[derive(Serialize)]
struct BudgetReport {
    kv_budget_bytes: usize,
    at_limit: LimitPolicy,
    #[serde(rename = "times_relieved")]
    times_narrowed: usize,
}
