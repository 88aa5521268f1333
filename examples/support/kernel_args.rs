//! The attention settings of the command line.

use std::path::PathBuf;
use std::sync::Arc;

use deltallm::models::Model;
use deltallm::{
    AttentionOptions, HybridConfig, KvStore, PaperRule, Precision, SkipMargin, TargetSparsity,
    ThresholdPolicy, Window,
};
use serde::Serialize;

use crate::{KernelChoice, ModelProfile};

/// Which attention runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelKind {
    /// Exact
    Dense,
    /// Delta-coded keys everywhere
    Delta,
    /// Exact window and sinks, delta-coded keys for the rest
    Hybrid,
}

/// When attention is approximate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// While a prompt is read and while text is generated
    Both,
    /// While a prompt is read only
    Prefill,
}

/// Attention settings.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Attention")]
pub struct KernelArgs {
    /// dense (exact), delta (delta-coded keys) or hybrid (exact window and sinks, the rest delta-coded)
    // Values that bring help of their own would spread the whole help over three lines an option.
    #[arg(long, value_enum, default_value_t = KernelKind::Hybrid, hide_possible_values = true)]
    kernel: KernelKind,
    /// Settings from a calibration (JSON), or none [default: those that come with the program, if they are for the model]
    #[arg(long, value_name = "FILE|none")]
    profile: Option<PathBuf>,
    /// One threshold for all key channels
    #[arg(long, value_name = "X", value_parser = parse_theta, conflicts_with_all = ["profile", "target_sparsity"])]
    theta: Option<f32>,
    /// Thresholds that find this share of zero entries by themselves; with --profile FILE they start from it [default: 0.45
    /// where there is no profile]
    #[arg(long, value_name = "S", value_parser = parse_share)]
    target_sparsity: Option<f32>,
    /// The paper's rule: --theta 0.6 --window block:0.05 --sinks 0 --skip-margin off, each of which can be changed
    #[arg(long, conflicts_with_all = ["profile", "target_sparsity"])]
    paper: bool,
    /// Keys scored exactly: the latest N, or block:SCALE for the paper's blocks of SCALE times the prompt [default: 64]
    #[arg(long, value_name = "N|block:SCALE")]
    window: Option<Window>,
    /// First keys, always scored exactly [default: 4]
    #[arg(long, value_name = "N")]
    sinks: Option<usize>,
    /// Skip values whose key scores T nats below the best exact one; ln:C is ln(keys) - C, at least 3; ln:C:L, at least L
    /// [default: the profile's, or off]
    #[arg(long, value_name = "T|ln:C[:L]|off", value_parser = parse_margin)]
    skip_margin: Option<MarginChoice>,
    /// Prompts of up to N tokens are attended exactly [default: the profile's, layer by layer, with its own margin; else 0]
    #[arg(long, value_name = "N")]
    exact_prompt: Option<usize>,
    /// Store of keys and values: f32, f16, bf16; int8; or compact (4-bit deltas and values, with an exact f16 window in hybrid)
    #[arg(long, value_name = "STORE", default_value = "f16", value_parser = parse_store)]
    kv: KvStore,
    /// Numbers that a prompt's products are made of: f32, or 16 bits where the CPU has instructions for them: int16 (AVX512-VNNI)
    /// or bf16 (Arm)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse_precision)]
    precision: Precision,
    /// Where attention is approximate: both, or prefill alone (generated tokens see everything exactly)
    #[arg(long, value_enum, default_value_t = Phases::Both, hide_possible_values = true)]
    phases: Phases,
}

/// A margin, or none. (clap gives an `Option` in an `Option` another meaning.)
#[derive(Debug, Clone, Copy, PartialEq)]
struct MarginChoice(Option<SkipMargin>);

fn parse_theta(text: &str) -> Result<f32, String> {
    let theta = text.parse().ok().filter(|theta: &f32| theta.is_finite() && *theta >= 0.0);
    theta.ok_or_else(|| "expected a finite number >= 0".into())
}

fn parse_share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share: &f32| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number in 0..=1".into())
}

fn parse_margin(text: &str) -> Result<MarginChoice, String> {
    match text {
        "off" => Ok(MarginChoice(None)),
        _ => text
            .parse()
            .map(|margin| MarginChoice(Some(margin)))
            .map_err(|_| "expected a number of nats > 0, ln:C or ln:C:L for ln(keys) - C, or off".into()),
    }
}

fn parse_store(text: &str) -> Result<KvStore, String> {
    text.parse().map_err(|_| "expected f32, f16, bf16, int8 or compact".into())
}

fn parse_precision(text: &str) -> Result<Precision, String> {
    text.parse().map_err(|_| "expected f32, bf16 or int16".into())
}

impl KernelArgs {
    /// Checks the settings against the model.
    ///
    /// # Errors
    /// For a profile that cannot be read or is not for this model, and for settings that no kernel takes.
    pub fn resolve(&self, model: &Model) -> anyhow::Result<KernelChoice> {
        let context = model.config().context_length;
        if let Some(sinks) = self.sinks {
            anyhow::ensure!(
                sinks <= context,
                "--sinks: expected at most {context}, the model's context, got {sinks}"
            );
        }
        anyhow::ensure!(
            self.kernel != KernelKind::Dense || self.kv == self.kv.dense(),
            "--kv {}: expected --kernel hybrid, which keeps its window exact, got dense; or take --kv int8",
            self.kv
        );
        anyhow::ensure!(
            self.kernel != KernelKind::Delta || self.kv.is_delta(),
            "--kv {}: expected --kernel hybrid or dense, got delta, which has a store of deltas only: --kv compact",
            self.kv
        );
        let profile = self.profile(model)?;
        let base = match self.paper {
            true => HybridConfig::from(PaperRule::default()),
            false => HybridConfig::default(),
        };
        let (mut window, mut sinks) = (base.window, base.sinks);
        if let Some(profile) = &profile {
            (window, sinks) = (profile.settings.window(), profile.settings.sinks());
        }
        let config = HybridConfig {
            thresholds: self.thresholds(profile.as_ref(), base.thresholds),
            window: self.window.unwrap_or(window),
            sinks: self.sinks.unwrap_or(sinks),
            ..base
        };
        let options = AttentionOptions {
            store: self.kv,
            precision: self.precision,
            isa: model.isa(),
            ..AttentionOptions::new(model.attention_shape())
        };
        let isa = options.isa;
        let precisions = [Precision::F32, Precision::Bf16, Precision::Int16];
        let possible = precisions.into_iter().filter(|precision| precision.is_multiplied_by(isa));
        anyhow::ensure!(
            self.precision.is_multiplied_by(isa),
            "--precision: expected one that {isa} has instructions for ({}), got {}",
            possible.map(|precision| precision.to_string()).collect::<Vec<_>>().join(", "),
            self.precision
        );
        let choice = KernelChoice::new(
            self.kernel,
            options,
            config,
            profile,
            self.skip_margin.map(|margin| margin.0),
            self.exact_prompt,
            self.phases,
        );
        choice.make(0)?;
        Ok(choice)
    }

    /// The profile to start from: the one that is named, or else the one that comes with the program, unless other thresholds
    /// have been asked for.
    fn profile(&self, model: &Model) -> anyhow::Result<Option<ModelProfile>> {
        match &self.profile {
            Some(path) if path.as_os_str() == "none" => Ok(None),
            Some(path) => ModelProfile::read(path, model).map(Some),
            None if self.theta.or(self.target_sparsity).is_some() || self.paper => Ok(None),
            None => Ok(ModelProfile::built_in(model)),
        }
    }

    fn thresholds(&self, profile: Option<&ModelProfile>, default: ThresholdPolicy) -> ThresholdPolicy {
        if let Some(zero_fraction) = self.target_sparsity {
            let target = TargetSparsity::new(zero_fraction);
            return ThresholdPolicy::TargetSparsity(match profile {
                Some(profile) => target.from_profile(Arc::clone(profile.settings.thresholds())),
                None => target,
            });
        }
        match (self.theta, profile) {
            (Some(theta), _) => ThresholdPolicy::Uniform(theta),
            (None, Some(profile)) => ThresholdPolicy::Profile(Arc::clone(profile.settings.thresholds())),
            (None, None) => default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_parse() {
        assert_eq!(parse_margin("off"), Ok(MarginChoice(None)));
        assert_eq!(parse_margin("4.5"), Ok(MarginChoice(Some(SkipMargin::Fixed(4.5)))));
        assert_eq!(parse_margin("ln:3"), Ok(MarginChoice(Some(SkipMargin::length(3.0)))));
        for bad in ["on", "0", "-4", "inf", "nan", "", "ln:"] {
            assert!(parse_margin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn thresholds_and_shares_parse() {
        assert_eq!(parse_theta("0"), Ok(0.0));
        assert_eq!(parse_share("1"), Ok(1.0));
        for bad in ["-0.1", "inf", "nan", "x"] {
            assert!(parse_theta(bad).is_err() && parse_share(bad).is_err(), "{bad}");
        }
        assert!(parse_share("1.1").is_err());
    }

    #[test]
    fn stores_parse() {
        for store in KvStore::ALL {
            assert_eq!(parse_store(store.name()), Ok(store));
        }
        assert!(parse_store("q8").is_err());
        assert_eq!(parse_store("int4"), Err("expected f32, f16, bf16, int8 or compact".to_owned()));
    }
}
