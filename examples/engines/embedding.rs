//! Another engine as it is, and with our attention: what the example that embeds us compares.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use deltallm::models::ModelFile;
use deltallm::{
    AttentionError, AttentionKernel, AttentionProfile, AttentionShape, Isa, KernelContext, KernelKind,
    KernelSpec, KvStore, SpecOverrides,
};
use serde::Serialize;

use super::threads::restart_with;
use super::timing::{EngineRow, TimingArgs, time_engines};
use super::{Engine, continue_greedily};

/// Run another engine's model with our attention in it, beside the engine's own.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct EmbedArgs {
    /// GGUF file of a Llama
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// How the engine holds quantised weights: f32, exact and the fastest for prompts, or packed, as in the file, inputs of
    /// linear layers being rounded to 8 bits: there the last bit of a sum may decide about a token
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Linear::F32, hide_possible_values = true)]
    linear: Linear,
    /// Text to continue
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time there was")]
    prompt: String,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Our attention: hybrid, delta or dense
    #[arg(long, value_name = "KERNEL", default_value = "hybrid")]
    kernel: KernelKind,
    /// Its store: f32, f16, bf16, int8 or compact
    #[arg(long, value_name = "STORE", default_value = "f16")]
    kv: KvStore,
    /// Its settings, from `deltallm calibrate` [default: thresholds that find their zeros by themselves]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Worker threads [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    timing: TimingArgs,
    /// Text to time on [default: docs/method.md]
    #[arg(long, value_name = "FILE", requires = "bench", help_heading = "Timing")]
    text: Option<PathBuf>,
}

/// How the engine holds quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Linear {
    /// As they are in the file.
    Packed,
    /// Unpacked.
    F32,
}

/// Attention settings that fit a model: makes the kernel of every layer.
#[derive(Debug, Clone)]
pub(crate) struct Kernels {
    /// The settings.
    pub(crate) spec: KernelSpec,
    /// What else a kernel needs.
    pub(crate) context: KernelContext,
}

impl Kernels {
    /// The kernel of one layer, with an empty cache.
    ///
    /// # Errors
    /// As [`KernelSpec::build`].
    pub(crate) fn make(&self, layer: usize) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        self.spec.build(layer, &self.context)
    }

    /// Exact attention on the same type of cache.
    fn dense(&self) -> Self {
        let store = self.spec.store.exact().into();
        let spec = self.spec.clone().kernel(KernelKind::Dense).store(store).layers(Vec::new());
        Self { spec, ..self.clone() }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KernelSpec { kernel, exact_window: window, exact_sinks: sinks, store, .. } = &self.spec;
        match kernel {
            KernelKind::Hybrid => write!(f, "{kernel}: window {window}, {sinks} sinks, cache {store}")?,
            _ => write!(f, "{kernel}: cache {store}")?,
        }
        write!(f, ", {}", self.context.isa)
    }
}

/// An engine as it is.
pub(crate) trait Original {
    /// Its name.
    fn name(&self) -> &'static str;

    /// The model.
    ///
    /// # Errors
    /// What the engine says.
    fn engine(&self) -> anyhow::Result<Box<dyn Engine>>;

    /// Text to tokens.
    ///
    /// # Errors
    /// What the tokenizer says.
    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>>;

    /// Tokens to text.
    ///
    /// # Errors
    /// What the tokenizer says.
    fn decode(&self, tokens: &[u32]) -> anyhow::Result<String>;

    /// The token that ends a text.
    fn end(&self) -> Option<u32>;
}

impl EmbedArgs {
    /// Starts the threads, and checks the attention settings against the model.
    ///
    /// # Errors
    /// For a model that is not a file, or that no settings fit.
    pub(crate) fn start(&self) -> anyhow::Result<(&Path, Kernels)> {
        restart_with(self.threads, Some(self.linear == Linear::F32))?;
        let threads = self.threads.map_or(0, usize::from);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        anyhow::ensure!(
            self.model.is_file(),
            "--model: expected a GGUF file of a Llama, got {}; run tools/fetch-smollm2",
            self.model.display()
        );
        // Our loader reads the sizes alone; the weights stay in the file.
        let config = ModelFile::open(&self.model)?.config()?;
        let shape = AttentionShape::new(config.heads, config.kv_heads, config.head_dim)?;
        let settings = match &self.profile {
            Some(path) => {
                let name = || format!("--profile {}", path.display());
                let profile: AttentionProfile =
                    serde_json::from_slice(&std::fs::read(path).with_context(name)?)?;
                let sizes = [config.layers, config.kv_heads, config.head_dim];
                profile.check(config.fingerprint(), sizes).with_context(name)?;
                profile.spec().clone()
            }
            None => KernelSpec::default(),
        };
        let given = SpecOverrides::default().kernel(self.kernel).store(self.kv);
        let spec = settings.with(&given);
        spec.validate(shape, config.layers)?;
        let context = KernelContext::new(shape).isa(Isa::from_env()?);
        Ok((&self.model, Kernels { spec, context }))
    }

    /// Continues the prompt with the engine as it is and as `with` makes it, with our attention; or, with `--bench`, times
    /// them on a text.
    ///
    /// # Errors
    /// What the engine says, and for a text that is too short.
    pub(crate) fn compare(
        &self,
        original: &dyn Original,
        kernel: Kernels,
        with: &dyn Fn(Kernels) -> anyhow::Result<Box<dyn Engine>>,
    ) -> anyhow::Result<()> {
        let mut engines = vec![(original.name().to_owned(), original.engine()?)];
        if self.timing.bench && self.kernel != KernelKind::Dense {
            engines.push((format!("{} + dense", original.name()), with(kernel.dense())?));
        }
        let ours = format!("{} + {}", original.name(), self.kernel);
        let _ = writeln!(std::io::stderr(), "{ours:<16} {kernel}");
        engines.push((ours, with(kernel)?));
        match self.timing.bench {
            true => self.bench(&mut engines, original),
            false => self.generate(&mut engines, original),
        }
    }

    fn generate(
        &self,
        engines: &mut [(String, Box<dyn Engine>)],
        original: &dyn Original,
    ) -> anyhow::Result<()> {
        let prompt = original.encode(&self.prompt)?;
        anyhow::ensure!(
            !prompt.is_empty(),
            "--prompt: expected a text of at least one token, got an empty one"
        );
        let mut texts: Vec<Text> = Vec::new();
        for (engine, model) in engines {
            let made = continue_greedily(
                model.as_mut(),
                &prompt,
                self.timing.chunk(),
                self.max_tokens as usize,
                original.end(),
            )?;
            let first = texts.first().map_or(&made.tokens, |first| &first.tokens);
            let text = Text {
                engine: engine.clone(),
                text: original.decode(&made.tokens)?,
                first_difference: first.iter().zip(&made.tokens).position(|(a, b)| a != b),
                prefill_tokens_per_second: prompt.len() as f64 / made.prefill.as_secs_f64(),
                decode_tokens_per_second: made.decode_tokens_per_second(),
                tokens: made.tokens,
            };
            writeln!(std::io::stdout(), "=== {engine} ===\n{}{}", self.prompt, text.text)?;
            texts.push(text);
        }
        for text in &texts {
            let _ = writeln!(
                std::io::stderr(),
                "{:<16} prompt at {:.1} tokens/s, text at {:.1} tokens/s, {}",
                text.engine,
                text.prefill_tokens_per_second,
                text.decode_tokens_per_second.unwrap_or_default(),
                text.first_difference
                    .map_or("the same tokens".into(), |at| format!("other tokens from {at} on"))
            );
        }
        if self.json {
            let threads = rayon::current_num_threads();
            let report = Report { prompt_tokens: prompt.len(), threads, engines: texts };
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
        }
        Ok(())
    }

    fn bench(
        &self,
        engines: &mut [(String, Box<dyn Engine>)],
        original: &dyn Original,
    ) -> anyhow::Result<()> {
        let text = match &self.text {
            Some(path) => {
                std::fs::read_to_string(path).with_context(|| format!("--text {}", path.display()))?
            }
            None => include_str!("../../docs/method.md").to_owned(),
        };
        let rows = time_engines(engines, &original.encode(&text)?, &self.timing)?;
        let _ = writeln!(
            std::io::stderr(),
            "engine            prompt   prefill/s  ratio   decode/s  ratio   agreement"
        );
        for row in &rows {
            let _ = writeln!(
                std::io::stderr(),
                "{:<16} {:>7} {:>11.1} {:>6.2} {:>10.2} {:>6.2} {:>9.1} %",
                row.engine,
                row.prompt_tokens,
                row.prefill_tokens_per_second,
                row.prefill_ratio,
                row.decode_tokens_per_second,
                row.decode_ratio,
                100.0 * row.agreement
            );
        }
        let timed = Timed { threads: rayon::current_num_threads(), linear: self.linear, rows };
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&timed)?)?;
        Ok(())
    }
}

/// The texts, for programs.
#[derive(Serialize)]
struct Report {
    prompt_tokens: usize,
    threads: usize,
    engines: Vec<Text>,
}

#[derive(Serialize)]
struct Text {
    engine: String,
    tokens: Vec<u32>,
    text: String,
    /// Index of the first token that the engine's own attention would not have chosen; null when there is none.
    first_difference: Option<usize>,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: Option<f64>,
}

#[derive(Serialize)]
struct Timed {
    threads: usize,
    linear: Linear,
    rows: Vec<EngineRow>,
}
