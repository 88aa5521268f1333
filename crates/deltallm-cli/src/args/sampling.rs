//! How the next token is drawn.

use clap::Args;
use deltallm::models::SamplerConfig;

use super::numbers::{MOST, number, whole};

/// How the next token is drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
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
    pub(crate) fn resolve(&self, demonstrates: bool) -> SamplerConfig {
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
