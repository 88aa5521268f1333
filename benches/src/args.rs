//! The command line of `ratios`.

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use deltallm_cli::{LoadedModel, read_text};

use crate::inputs::{Inputs, captured, shapes::NamedShape, synthetic};
use crate::settings::SettingsArgs;
use crate::subject::Phase;
use crate::variants::OURS;

/// Interleaved timings of our attention kernels and of other engines, in one process, on the same inputs.
///
/// With --text, inputs are q, k, v of the layers of a model that reads the text, and times are sums over these.
/// Otherwise they are synthetic: nothing can be said about accuracy on them. docs/benchmarks.md says what the columns mean.
#[derive(Debug, clap::Parser)]
#[command(name = "ratios", version)]
pub struct Args {
    /// GGUF file, folder with one, safetensors file, model directory or name of an embedded model [default: fairy-tales]
    #[arg(long, value_name = "FILE|DIR", requires = "text")]
    model: Option<PathBuf>,
    /// Text that the model reads, UTF-8
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shape", "zero_fraction", "values_skipped"])]
    text: Option<PathBuf>,
    /// Windows of the text; times are means over them
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), requires = "text")]
    windows: u16,
    /// Lengths in tokens
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "512,1024,2048", value_parser = clap::value_parser!(u32).range(1..))]
    n: Vec<u32>,
    /// Shape of synthetic inputs: llama-3.2-1b, bitnet-2b4t, smollm2, or HEADS,KV_HEADS,HEAD_DIM
    #[arg(long, value_name = "SHAPE", default_value = "smollm2")]
    shape: NamedShape,
    /// Layers: of synthetic inputs, each with a cache of its own, or of the model, spread evenly [default: 1 and all]
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u16).range(1..))]
    layers: Option<u16>,
    /// Share of zero delta entries in synthetic inputs; the threshold is chosen for it
    #[arg(long, value_name = "S", default_value_t = 0.6, value_parser = parse_share)]
    zero_fraction: f64,
    /// Share of far values that are skipped in synthetic inputs; the skip margin is chosen for it
    #[arg(long, value_name = "S", default_value_t = 0.65, value_parser = parse_share)]
    values_skipped: f64,
    /// Variants to time; the one that ratios refer to always is [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = PossibleValuesParser::new(names()))]
    variants: Vec<String>,
    /// Phases to time
    #[arg(
        long,
        value_name = "PHASE,...",
        value_delimiter = ',',
        default_value = "prefill,decode",
        hide_possible_values = true
    )]
    pub phases: Vec<Phase>,
    /// Rounds that count; their median is the result
    #[arg(long, value_name = "R", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    pub repetitions: u16,
    /// Rounds in which other engines take part, at most
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub peer_repetitions: u16,
    /// Tokens that a variant decodes in a row in a round
    #[arg(long, value_name = "STEPS", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    pub decode_steps: u16,
    /// Threads of everyone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,
    /// Time PyTorch as well, with this Python
    #[arg(long, value_name = "PYTHON")]
    pub torch: Option<PathBuf>,
    /// Print the ratios of every layer as well
    #[arg(long)]
    pub per_layer: bool,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// candle's variants.
pub const CANDLE: [&str; 2] = ["candle-flash", "candle-matmul"];

fn names() -> Vec<&'static str> {
    OURS.iter().map(|variant| variant.name).chain(CANDLE).collect()
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..1.0).contains(share));
    share.ok_or_else(|| "expected a number >= 0 and < 1".into())
}

impl Args {
    /// The lengths, shortest first.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = self.n.iter().map(|n| *n as usize).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Whether the variant was asked for.
    pub fn wants(&self, variant: &str) -> bool {
        self.variants.is_empty() || self.variants.iter().any(|name| name == variant)
    }

    /// Captures or makes the inputs, as long as the longest length.
    ///
    /// # Errors
    /// For files that cannot be read, and inputs that cannot be had.
    pub fn inputs(&self) -> anyhow::Result<Inputs> {
        let tokens = self.lengths().last().copied().context("--n: expected a length")?;
        let Some(path) = &self.text else {
            let request = synthetic::Request {
                shape: self.shape.clone(),
                tokens,
                layers: self.layers.unwrap_or(1).into(),
                zero_fraction: self.zero_fraction,
                values_skipped: self.values_skipped,
            };
            return synthetic::synthetic(&request, &self.settings);
        };
        let text = read_text("--text", path)?;
        let model = LoadedModel::open(self.model.as_deref())?;
        let layers = self.layers.map(usize::from);
        captured::capture(&model, &text, self.windows.into(), tokens, layers, &self.settings)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn all_variants_are_wanted_unless_some_are_named() {
        let args = |text: &str| Args::try_parse_from(text.split(' ')).unwrap();
        assert!(names().iter().all(|name| args("ratios").wants(name)));
        let some = args("ratios --variants hybrid-f32,candle-flash --n 9,3,9");
        assert!(some.wants("hybrid-f32") && some.wants("candle-flash") && !some.wants("dense-f32"));
        assert_eq!(some.lengths(), [3, 9]);
    }
}
