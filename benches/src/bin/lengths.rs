//! What settings cost and save while a text grows: accuracy, bytes and time of attention, in one pass.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Parser;
use deltallm::AttentionKernel;
use deltallm::core::HeadSparsity;
use deltallm::models::{LogitRows, Model};
use deltallm_benches::machine;
use deltallm_cli::{
    AttentionTime, Comparison, KernelArgs, KernelChoice, LoadedModel, Perplexity, Progress, TokenScore,
    main_with, print_json, read_text, score_rows,
};
use ndarray::{Array2, s};
use serde::Serialize;

/// Tokens of a call, as a session has them.
const CHUNK: usize = 512;

/// Perplexity, divergence, bytes and time of attention of several settings at several lengths of one text.
///
/// Dense attention (f16) and every --setting read the same window side by side, 512 tokens each in turn. A row is printed for
/// each at every length: of a causal model, what has been read so far is what a shorter text would give. (Not so where settings
/// depend on the length of the whole prompt, as the paper's block window does: name one length at a time for these.)
///
/// The dense attention that all are compared with has f32 products. Beside settings with --precision int16 or bf16, time exact attention with
/// the same: --setting "exact: --kernel dense --precision int16".
#[derive(Debug, Parser)]
#[command(name = "lengths", version)]
struct Args {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR")]
    model: Option<PathBuf>,
    /// Text that is read, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Lengths in tokens, the begin-of-text token of models that want one included
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1024", value_parser = clap::value_parser!(u32).range(2..))]
    n: Vec<u32>,
    /// Settings, as `evaluate` takes them, behind a name: "compact: --profile FILE --kv compact". May be given several times
    #[arg(long = "setting", value_name = "NAME: FLAGS", required = true, allow_hyphen_values = true)]
    settings: Vec<Setting>,
    /// The first token after which the next one is scored; llama.cpp's program scores the second half of a window
    #[arg(long, value_name = "N", default_value_t = 0)]
    score_from: u32,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

/// Attention settings with a name.
#[derive(Debug, Clone)]
struct Setting {
    name: String,
    kernel: KernelArgs,
}

impl std::str::FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, flags) = text.split_once(':').ok_or("expected NAME: FLAGS")?;
        Ok(Self { name: name.to_owned(), kernel: KernelArgs::parse(flags.split_whitespace())? })
    }
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).build_global()?;
    let mut lengths: Vec<usize> = args.n.iter().map(|n| *n as usize).collect();
    lengths.sort_unstable();
    lengths.dedup();
    let longest = *lengths.last().context("--n: expected a length")?;
    let text = read_text("--text", &args.text)?;
    let model = LoadedModel::open(args.model.as_deref())?;
    let most = model.graph.config().context_length;
    ensure!(longest <= most, "--n: expected at most {most}, the model's context, got {longest}");
    let tokens = model.encode(&text)?;
    ensure!(
        tokens.len() >= longest,
        "--text: expected at least {longest} tokens, got {}; use a longer text, or smaller --n",
        tokens.len()
    );
    let tokens = &tokens[..longest];
    let from = args.score_from as usize;
    ensure!(
        from + 1 < lengths[0],
        "--score-from: expected a token before the last of {}, the shortest length, got {from}",
        lengths[0]
    );

    let mut choices = Vec::new();
    for setting in &args.settings {
        let choice = setting.kernel.resolve(&model.graph)?.with_all_prompts();
        choices.push((setting.name.clone(), choice));
    }
    let mut dense =
        Reader::new(&model.graph, "dense", choices[0].1.dense().with_store(deltallm::KvStore::F16), longest)?;
    let mut others =
        (choices.into_iter().map(|(name, choice)| Reader::new(&model.graph, &name, choice, longest)))
            .collect::<anyhow::Result<Vec<_>>>()?;

    let mut progress = Progress::new("reading");
    let mut done = 0;
    for length in lengths {
        while done < length {
            let end = length.min(done + CHUNK);
            let (part, next) = (&tokens[done..end], &tokens[done + 1..tokens.len().min(end + 1)]);
            let skip = from.saturating_sub(done).min(next.len());
            let exact = dense.read(part, next, skip)?;
            for (turn, other) in others.iter_mut().enumerate() {
                let read = other.read(part, next, skip)?;
                other
                    .comparison
                    .add((exact.logits.view(), &exact.scores), (read.logits.view(), &read.scores));
                progress.update(
                    done * args.settings.len() + (end - done) * (turn + 1),
                    longest * args.settings.len(),
                );
            }
            done = end;
        }
        let about = About {
            model: &model.name,
            text: args.text.file_name().map(|name| name.to_string_lossy().into_owned()),
            cpu: machine::cpu(),
            date: machine::date(),
            threads: rayon::current_num_threads(),
            score_from: args.score_from,
        };
        for reader in std::iter::once(&dense).chain(&others) {
            print_json(&Row { about: &about, tokens: done, measured: reader.measured(&dense) })?;
        }
    }
    Ok(())
}

/// A text as one kind of attention reads it.
struct Reader {
    name: String,
    model: Arc<Model>,
    choice: KernelChoice,
    kernels: Vec<Box<dyn AttentionKernel>>,
    time: AttentionTime,
    perplexity: Perplexity,
    /// Beside dense attention.
    comparison: Comparison,
    /// Time of attention in every call.
    calls: Vec<Duration>,
}

/// What came of a call.
struct Read {
    logits: Array2<f32>,
    scores: Vec<TokenScore>,
}

impl Reader {
    fn new(model: &Arc<Model>, name: &str, choice: KernelChoice, tokens: usize) -> anyhow::Result<Self> {
        let time = AttentionTime::default();
        let kernels = (0..model.config().layers).map(|layer| choice.make_timed(layer, &time));
        let mut kernels = kernels.collect::<Result<Vec<_>, _>>()?;
        kernels.iter_mut().for_each(|kernel| kernel.begin_prompt(tokens));
        Ok(Self {
            name: name.to_owned(),
            model: model.clone(),
            choice,
            kernels,
            time,
            perplexity: Perplexity::default(),
            comparison: Comparison::default(),
            calls: Vec::new(),
        })
    }

    /// Reads the next tokens; `next` are those that they predict, one fewer at the end of the text, of which the first `skip` do not
    /// count.
    fn read(&mut self, tokens: &[u32], next: &[u32], skip: usize) -> anyhow::Result<Read> {
        let before = self.time.get();
        let logits = self.model.forward(tokens, &mut self.kernels, LogitRows::All)?;
        self.calls.push(self.time.get() - before);
        let scores = score_rows(logits.slice(s![skip..next.len(), ..]), &next[skip..])?;
        let logits = logits.slice_move(s![skip.., ..]);
        self.perplexity.add(&scores);
        Ok(Read { logits, scores })
    }

    fn measured(&self, dense: &Self) -> Measured<'_> {
        let mut total = HeadSparsity::default();
        self.kernels.iter().for_each(|kernel| total += kernel.stats().total());
        let bytes =
            |reader: &Self| reader.kernels.iter().map(|kernel| kernel.footprint().total()).sum::<usize>();
        let seconds = |reader: &Self| reader.calls.iter().sum::<Duration>().as_secs_f64();
        let same = std::ptr::eq(self, dense);
        Measured {
            setting: &self.name,
            kernel: self.choice.to_string(),
            perplexity: self.perplexity.value(),
            perplexity_change: self.perplexity.value() / dense.perplexity.value() - 1.0,
            kl: if same { 0.0 } else { self.comparison.kl() },
            top1_agreement: if same { 1.0 } else { self.comparison.top1_agreement() },
            zero_fraction: total.zero_fraction(),
            sparsity: total.sparsity(),
            values_skipped: total.values_skipped(),
            cache_bytes: bytes(self),
            bytes_of_dense: bytes(self) as f64 / bytes(dense) as f64,
            attention_seconds: seconds(self),
            attention_ratio: seconds(dense) / seconds(self),
            last_call_ratio: last(&dense.calls) / last(&self.calls),
        }
    }
}

fn last(calls: &[Duration]) -> f64 {
    calls.last().map_or(f64::NAN, Duration::as_secs_f64)
}

#[derive(Serialize)]
struct About<'a> {
    model: &'a str,
    text: Option<String>,
    cpu: String,
    date: String,
    threads: usize,
    /// The first token after which the next one is scored.
    score_from: u32,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    about: &'a About<'a>,
    /// Read so far.
    tokens: usize,
    #[serde(flatten)]
    measured: Measured<'a>,
}

/// Of all that has been read so far; accuracy from the first token on that is scored.
#[derive(Serialize)]
struct Measured<'a> {
    setting: &'a str,
    kernel: String,
    perplexity: f64,
    perplexity_change: f64,
    kl: f64,
    top1_agreement: f64,
    zero_fraction: f64,
    sparsity: f64,
    values_skipped: f64,
    cache_bytes: usize,
    bytes_of_dense: f64,
    attention_seconds: f64,
    /// Time of dense attention over this one's: above 1 is faster.
    attention_ratio: f64,
    /// The same of the last call alone.
    last_call_ratio: f64,
}
