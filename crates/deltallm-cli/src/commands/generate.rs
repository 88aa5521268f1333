//! Continues a prompt with delta attention and says what that saves.
//!
//! `cargo run --release -- generate` runs the embedded model beside dense attention; `--help` lists the rest.

use clap::ValueEnum;
use deltallm::KvStore;
use deltallm::models::{Narrowed, PromptCache, PromptLookup, SamplerConfig, Session, SpeculationStats};
use serde::Serialize;

use crate::args::{MOST, number, whole};
use crate::{
    AttentionTime, BudgetRefusal, CommonArgs, Generation, KernelArgs, KernelChoice, KernelKind,
    KernelSettings, LimitPolicy, LoadedModel, MemoryArgs, MemoryLimit, ModelArgs, SkippedValues, Stop,
    Wanted, dense_f16_bytes, first_difference, format_bytes, generate, interrupted, note, peak_rss_bytes,
    print, print_json, print_line, stop_on_ctrl_c,
};

/// Continued where nothing else is asked for: the beginning of a tale by the brothers Grimm, long enough that attention matters.
const TALE: &str = include_str!("../../assets/golden-bird.txt");
const DEFAULT_PROMPT: &str = "Once upon a time there was";
const DEFAULT_QUESTION: &str = "Tell me a short story about a fox and a river.";
/// Tokens that every kernel reads before it is timed beside another one.
const WARM_UP: usize = 64;

/// Continue a text with delta attention, and say what that saves
///
/// Without --model, --prompt, --chat and --kv-budget it is a demonstration: the embedded model continues a tale on the compact
/// store with the most probable tokens, and the same is done with dense attention for comparison.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue, or with --chat the question [default: the beginning of a story]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Put the prompt through the model's chat template
    #[arg(long)]
    chat: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = whole(1..=u32::MAX))]
    max_tokens: u32,
    /// Prompt-lookup decoding: draft tokens from earlier text and check several at once. The same text, faster where it repeats itself
    #[arg(long)]
    prompt_lookup: bool,
    /// Run the same prompt with exact attention too, and show where the texts part
    #[arg(long, value_name = "KERNEL")]
    compare: Option<Baseline>,
    /// Say all that was measured, not only what it comes to
    #[arg(long)]
    verbose: bool,
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
    /// 0 always takes the most probable token [default: 0.7]
    #[arg(long, value_name = "X", value_parser = number)]
    temperature: Option<f32>,
    /// Only the K most probable tokens; 0 is off [default: 40]
    #[arg(long, value_name = "K", value_parser = whole(0..=MOST))]
    top_k: Option<usize>,
    /// Only the fewest most probable tokens that together have this probability; 1 is off [default: 0.95]
    #[arg(long, value_name = "P", value_parser = number)]
    top_p: Option<f32>,
    /// Only tokens at least this probable relative to the most probable one; 0 is off [default: 0]
    #[arg(long, value_name = "P", value_parser = number)]
    min_p: Option<f32>,
    /// Makes tokens that have occurred less probable; 1 is off [default: 1]
    #[arg(long, value_name = "X", value_parser = number)]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same text [default: 0]
    #[arg(long, value_name = "N", value_parser = whole(0..=u64::MAX))]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The sampler's settings. A demonstration that nobody has set up takes the most probable tokens: where they are drawn, two texts
    /// part at the first near thing.
    fn resolve(&self, demonstrates: bool) -> SamplerConfig {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *self;
        let drawn = SamplerConfig::default()
            .with_repetition_penalty(repetition_penalty.unwrap_or(1.0))
            .with_temperature(temperature.unwrap_or(0.7))
            .with_top_k(top_k.unwrap_or(40))
            .with_top_p(top_p.unwrap_or(0.95))
            .with_min_p(min_p.unwrap_or(0.0))
            .with_seed(seed.unwrap_or(0));
        let given = temperature.or(top_p).or(min_p).or(repetition_penalty).is_some()
            || top_k.is_some()
            || seed.is_some();
        match demonstrates && !given {
            true => drawn.with_temperature(0.0).with_repetition_penalty(1.1),
            false => drawn,
        }
    }
}

pub(crate) fn run(mut args: Args) -> anyhow::Result<()> {
    args.common.start_threads()?;
    let model = args.model.open()?;
    let demonstrates = args.demonstrates() && args.kernel.kind() != KernelKind::Dense;
    if demonstrates {
        args.kernel = args.kernel.or_store(KvStore::Compact);
    }
    let kernel = args.kernel.resolve(&model.graph)?;
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
    stop_on_ctrl_c()?;

    let kernels = match args.compare {
        None if !demonstrates => vec![kernel],
        _ => vec![kernel.clone(), kernel.dense()],
    };
    if kernels.len() > 1 {
        kernels.iter().try_for_each(|kernel| warm_up(&model, kernel, &prompt.tokens))?;
    }
    let mut runs = Vec::new();
    for kernel in &kernels {
        // What has been asked for has ended; a comparison with half a text says nothing.
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

    let [run, dense @ ..] = runs.as_slice() else { return Ok(()) };
    let difference = dense.first().map(|dense| Difference::find(&model, run, dense)).transpose()?;
    note("");
    if args.verbose {
        describe(&model, &runs, difference.as_ref());
    }
    run.kernel.warning_beyond_profile(run.generation.cached_tokens).into_iter().for_each(note);
    note(summary(run, dense.first(), difference.as_ref()));
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

impl Args {
    /// Whether nothing is asked for in particular.
    fn demonstrates(&self) -> bool {
        self.model.path().is_none() && self.prompt.is_none() && !self.chat && !self.memory.is_limited()
    }
}

/// Lets a kernel, and the model around it, do everything once: the first of two runs would pay for both.
fn warm_up(model: &LoadedModel, kernel: &KernelChoice, tokens: &[u32]) -> anyhow::Result<()> {
    let mut session = Session::new(model.graph.clone(), |layer| kernel.make(layer))?;
    session.prefill(&tokens[..tokens.len().min(WARM_UP)])?;
    session.decode(tokens[0])?;
    Ok(())
}

/// Everything, for people who want to know.
fn describe(model: &LoadedModel, runs: &[Run], difference: Option<&Option<Difference>>) {
    let config = model.graph.config();
    note(format_args!(
        "model        {}: {} layers, {} heads, {} kv heads, head_dim {}, context {}",
        model.name, config.layers, config.heads, config.kv_heads, config.head_dim, config.context_length
    ));
    note(format_args!(
        "weights      {} in memory, read and packed in {:.2} s",
        format_bytes(model.graph.weights().bytes() as u64),
        model.loading.as_secs_f64()
    ));
    runs.iter().for_each(Run::describe);
    if let Some(bytes) = peak_rss_bytes() {
        note(format_args!("memory       {} at the peak, model included", format_bytes(bytes)));
    }
    match difference {
        Some(Some(d)) => note(format_args!(
            "difference   token {} of the text is {:?}, with dense attention {:?}",
            d.index, d.token, d.dense_token
        )),
        Some(None) => note("difference   none: the same tokens as with dense attention"),
        None => {}
    }
}

/// What it comes to, in a line.
fn summary(run: &Run, dense: Option<&Run>, difference: Option<&Option<Difference>>) -> String {
    let share = 100.0 * run.generation.footprint.total() as f64 / run.dense_f16_bytes as f64;
    let cache = format!("cache {share:.0} % of f16");
    let Some((dense, difference)) = dense.zip(difference) else {
        let text = run.generation.decode_tokens_per_second();
        let text = text.map_or(String::new(), |speed| format!(", text at {speed:.0}"));
        let prompt = match run.generation.found {
            0 => format!("prompt at {:.0} tokens/s", run.prefill_tokens_per_second()),
            found => format!(
                "prompt in {:.2} s, {found} of its {} tokens had been read before",
                run.generation.prefill.as_secs_f64(),
                run.prompt_tokens
            ),
        };
        return format!("{cache}; {prompt}{text}");
    };
    let [ours, exact] = [run, dense].map(|run| run.attention_seconds());
    let speed = match exact / ours {
        ratio if ratio >= 1.0 => format!("attention {ratio:.1} times faster than dense"),
        ratio => format!("attention {:.1} times slower than dense", 1.0 / ratio),
    };
    let same = match difference {
        Some(difference) => {
            format!("for the first {} of {} tokens", difference.index, run.generation.tokens.len())
        }
        None => format!("in all {} tokens", run.generation.tokens.len()),
    };
    format!("{cache}; {speed}; text identical {same}")
}

/// What the model is to continue.
struct Prompt {
    tokens: Vec<u32>,
    /// Shown before the continuation; a question is not, of a tale the last paragraph.
    shown: Option<String>,
}

impl Prompt {
    fn new(args: &Args, model: &LoadedModel) -> anyhow::Result<Self> {
        if args.demonstrates() {
            let last = TALE.lines().last().unwrap_or_default();
            return Ok(Self { tokens: model.encode(TALE)?, shown: Some(format!("[…]\n{last}\n")) });
        }
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
    attention: AttentionTime,
}

impl Run {
    fn new(
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

    fn attention_seconds(&self) -> f64 {
        self.attention.get().as_secs_f64()
    }

    fn prefill_tokens_per_second(&self) -> f64 {
        (self.prompt_tokens - self.generation.found) as f64 / self.generation.prefill.as_secs_f64()
    }

    /// The report for people.
    fn describe(&self) {
        let Generation { tokens, stop, footprint, sparsity, .. } = &self.generation;
        let skipped = SkippedValues::new(sparsity, &self.generation.prompt_sparsity);
        let percent = |x: f64| format!("{:.1} %", 100.0 * x);
        let bytes = |x: usize| format_bytes(x as u64);
        note(format_args!("kernel       {}", self.kernel));
        note(format_args!(
            "prompt       {} tokens at {:.1} tokens/s; first new token after {:.2} s",
            self.prompt_tokens,
            self.prefill_tokens_per_second(),
            self.generation.first_token.as_secs_f64()
        ));
        if self.generation.found > 0 {
            note(format_args!("             {} of them had been read before", self.generation.found));
        }
        match self.generation.decode_tokens_per_second() {
            Some(speed) => {
                note(format_args!("generated    {} tokens at {speed:.1} tokens/s ({stop})", tokens.len()))
            }
            None => note(format_args!("generated    {} tokens ({stop})", tokens.len())),
        }
        let SpeculationStats { drafted, accepted } = self.generation.speculation;
        if drafted > 0 {
            note(format_args!("             {drafted} tokens were drafted, {accepted} of them accepted"));
        }
        note(format_args!("attention    {:.3} s of that, all layers together", self.attention_seconds()));
        if self.kernel.kind() != KernelKind::Dense {
            note(format_args!(
                "sparsity     zero fraction {}, sparsity as the paper counts it {}",
                percent(sparsity.zero_fraction()),
                percent(sparsity.sparsity())
            ));
            note(format_args!("             {skipped}"));
        }
        note(format_args!(
            "cache        {} for {} tokens: keys {}, values {}, exact window {}, tables {}",
            bytes(footprint.total()),
            self.generation.cached_tokens,
            bytes(footprint.keys),
            bytes(footprint.values),
            bytes(footprint.window),
            bytes(footprint.bookkeeping)
        ));
        note(format_args!(
            "             {} of the {} that a dense f16 cache takes",
            percent(footprint.total() as f64 / self.dense_f16_bytes as f64),
            bytes(self.dense_f16_bytes)
        ));
        let says = "`deltallm inspect` says from which length on it is less";
        if footprint.total() > self.dense_f16_bytes && footprint.window > 0 {
            note(format_args!(
                "             more, because the exact window is held beside its coded keys; {says}"
            ));
        } else if footprint.total() == self.dense_f16_bytes && self.kernel.kind() == KernelKind::Hybrid {
            note(format_args!("             the same, because so short a context is held in f16; {says}"));
        }
        if let Some(MemoryLimit { bytes: limit, policy }) = self.limit {
            let narrowed = match self.generation.narrowed {
                Narrowed { times: 0, .. } => String::new(),
                Narrowed { times, bytes: freed } => {
                    format!("; {policy} helped {times} times and gave {} back", bytes(freed))
                }
            };
            note(format_args!(
                "budget       {} of {} used{narrowed}",
                bytes(footprint.total()),
                bytes(limit)
            ));
            if let Some(refused) = &self.generation.refused {
                note(format_args!("             {refused}"));
            }
        }
    }

    fn measured(&self) -> Measured<'_> {
        let Generation { tokens, text, stop, footprint, sparsity, first_token, .. } = &self.generation;
        Measured {
            kernel: self.kernel.kind(),
            prompt_tokens: self.prompt_tokens,
            prompt_tokens_found: self.generation.found,
            generated_tokens: tokens.len(),
            guessed_tokens: self.generation.speculation.drafted,
            guessed_tokens_right: self.generation.speculation.accepted,
            text,
            prefill_tokens_per_second: self.prefill_tokens_per_second(),
            decode_tokens_per_second: self.generation.decode_tokens_per_second(),
            zero_fraction: sparsity.zero_fraction(),
            sparsity: sparsity.sparsity(),
            skipped: SkippedValues::new(sparsity, &self.generation.prompt_sparsity),
            kv_bytes: footprint.total(),
            kv_bytes_dense_f16: self.dense_f16_bytes,
            stop: *stop,
            time_to_first_token_seconds: first_token.as_secs_f64(),
            attention_seconds: self.attention_seconds(),
            budget: self.limit.map(|MemoryLimit { bytes, policy }| BudgetReport {
                kv_budget_bytes: bytes,
                at_limit: policy,
                times_narrowed: self.generation.narrowed.times,
                refused: self.generation.refused,
            }),
            beyond_profile: self.kernel.is_beyond_profile(self.generation.cached_tokens),
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
    /// Of these, how many had been read before: with --prompt-cache.
    prompt_tokens_found: usize,
    generated_tokens: usize,
    /// Drafted tokens: with --prompt-lookup.
    guessed_tokens: usize,
    /// Of these, tokens that were accepted.
    guessed_tokens_right: usize,
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
