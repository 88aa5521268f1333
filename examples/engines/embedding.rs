//! Another engine as it is, and with our attention: what the example that embeds us compares.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Serialize;

use crate::engines::{Engine, EngineRow, TimingArgs, continue_greedily, time_engines};
use crate::{
    CommonArgs, KernelArgs, KernelChoice, KernelKind, LinearKind, LoadedModel, first_difference, print_json,
    read_text, restart_with_weights,
};

/// Run another engine's model with our attention in it, beside the engine's own.
#[derive(Debug, Parser)]
#[command(version)]
pub struct EmbedArgs {
    /// GGUF file of a Llama
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// How the engine holds quantised weights: f32, exact and the fastest for prompts, or packed, as in the file, inputs of
    /// linear layers being rounded to 8 bits: there the last bit of a sum may decide about a token
    #[arg(long, value_enum, value_name = "FORM", default_value_t = LinearKind::F32, hide_possible_values = true)]
    linear: LinearKind,
    /// Text to continue
    #[arg(long, value_name = "TEXT", default_value = "Once upon a time there was")]
    prompt: String,
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    timing: TimingArgs,
    /// Text to time on [default: docs/method.md]
    #[arg(long, value_name = "FILE", requires = "bench", help_heading = "Timing")]
    text: Option<PathBuf>,
}

/// An engine as it is.
pub trait Original {
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
    /// Starts the threads, and checks the attention settings against the model, which our own loader reads for that.
    ///
    /// # Errors
    /// For a model that is not a file, or that no settings fit.
    pub fn start(&self) -> anyhow::Result<(&Path, KernelChoice)> {
        restart_with_weights(self.common.threads, self.linear == LinearKind::F32)?;
        self.common.start_threads()?;
        let model = LoadedModel::open(Some(&self.model))?;
        anyhow::ensure!(
            self.model.is_file(),
            "--model: expected a GGUF file of a Llama, got {}; run tools/fetch-smollm2",
            self.model.display()
        );
        Ok((&self.model, self.kernel.resolve(&model.graph)?))
    }

    /// Continues the prompt with the engine as it is and as `with` makes it, with our attention; or, with `--bench`, times
    /// them on a text.
    ///
    /// # Errors
    /// What the engine says, and for a text that is too short.
    pub fn compare(
        &self,
        original: &dyn Original,
        kernel: KernelChoice,
        with: &dyn Fn(KernelChoice) -> anyhow::Result<Box<dyn Engine>>,
    ) -> anyhow::Result<()> {
        let mut engines = vec![(original.name().to_owned(), original.engine()?)];
        if self.timing.bench && kernel.kind() != KernelKind::Dense {
            engines.push((format!("{} + dense", original.name()), with(kernel.dense())?));
        }
        let ours = format!("{} + {}", original.name(), kernel.kind());
        eprintln!("{ours:<16} {kernel}");
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
                first_difference: first_difference(first, &made.tokens),
                prefill_tokens_per_second: prompt.len() as f64 / made.prefill.as_secs_f64(),
                decode_tokens_per_second: made.decode_tokens_per_second(),
                tokens: made.tokens,
            };
            writeln!(std::io::stdout(), "=== {engine} ===\n{}{}", self.prompt, text.text)?;
            texts.push(text);
        }
        for text in &texts {
            eprintln!(
                "{:<16} prompt at {:.1} tokens/s, text at {:.1} tokens/s, {}",
                text.engine,
                text.prefill_tokens_per_second,
                text.decode_tokens_per_second.unwrap_or_default(),
                text.first_difference
                    .map_or("the same tokens".into(), |at| format!("other tokens from {at} on"))
            );
        }
        if self.common.json {
            print_json(&Report {
                prompt_tokens: prompt.len(),
                threads: rayon::current_num_threads(),
                engines: texts,
            })?;
        }
        Ok(())
    }

    fn bench(
        &self,
        engines: &mut [(String, Box<dyn Engine>)],
        original: &dyn Original,
    ) -> anyhow::Result<()> {
        let text = match &self.text {
            Some(path) => read_text("--text", path)?,
            None => include_str!("../../../docs/method.md").to_owned(),
        };
        let rows = time_engines(engines, &original.encode(&text)?, &self.timing)?;
        eprintln!("engine            prompt   prefill/s  ratio   decode/s  ratio   agreement");
        for row in &rows {
            eprintln!(
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
        print_json(&Timed { threads: rayon::current_num_threads(), linear: self.linear, rows })
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
    linear: LinearKind,
    rows: Vec<EngineRow>,
}
