//! The attention settings of the command line.

use std::{path::PathBuf, str::FromStr};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, FromArgMatches};
use deltallm::models::Model;
use deltallm::{
    AttentionError, ExactWindow, KernelKind, KernelSpec, KvStore, PaperRule, Precision, SkipMargin,
    SpecError, SpecOverrides, TargetSparsity, ThresholdPolicy,
};

use super::numbers::{MOST, whole};
use crate::{KernelChoice, ModelProfile, Phases};

/// Attention settings.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Attention")]
pub struct KernelArgs {
    /// dense (exact), delta (delta-coded keys) or hybrid (exact window and sinks, the rest delta-coded)
    #[arg(long, value_parser = kernels(), default_value_t = KernelKind::Hybrid, hide_possible_values = true)]
    kernel: KernelKind,
    /// Settings from a calibration (JSON), or none [default: those that come with the program, if they are for the model]
    #[arg(long, value_name = "FILE|none")]
    profile: Option<PathBuf>,
    /// One threshold for all key channels
    #[arg(long, value_name = "X", value_parser = parse_theta, conflicts_with = "target_sparsity")]
    theta: Option<f32>,
    /// Thresholds that find this share of zero entries by themselves; with --profile FILE they start from it [default: 0.3
    /// where there is no profile]
    #[arg(long, value_name = "S", value_parser = parse_share)]
    target_sparsity: Option<f32>,
    /// The paper's rule: --theta 0.6 --window block:0.05 --sinks 0 --skip-margin off, each of which can be changed
    #[arg(long, conflicts_with = "target_sparsity")]
    paper: bool,
    /// Keys scored exactly: the latest N, or block:SCALE for the paper's blocks of SCALE times the prompt [default: 64]
    #[arg(long, value_name = "N|block:SCALE")]
    window: Option<ExactWindow>,
    /// First keys, always scored exactly [default: 4]
    #[arg(long, value_name = "N", value_parser = whole(0..=MOST))]
    sinks: Option<usize>,
    /// Leave out the value of a key that scores more than T nats below the best exact key. Aln+B: T = A ln(keys) + B, at
    /// least 3.5; with :L, at least L. T is 1.5 larger where a query decides alone, as in decoding [default: the profile's; without
    /// one 6.5, or off with --theta, --target-sparsity or --paper]
    #[arg(long, value_name = "T|Aln+B[:L]|off")]
    skip_margin: Option<MarginChoice>,
    /// Prompts of up to N tokens are attended exactly [default: the profile's, layer by layer, with its own margin; else 0]
    #[arg(long, value_name = "N", value_parser = whole(0..=MOST))]
    exact_prompt: Option<usize>,
    /// Store of keys and values: f32, f16, bf16; int8; or compact (4-bit deltas and values, with an exact f16 window in hybrid) [default: f16]
    #[arg(long, value_name = "STORE", value_parser = parse_store)]
    kv: Option<KvStore>,
    /// Numbers that a prompt's products are made of: f32, or 16 bits where the CPU has instructions for them: int16 (AVX512-VNNI)
    /// or bf16 (Arm)
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = parse_precision)]
    precision: Precision,
    /// Where attention is approximate: both, or prefill alone (generated tokens see everything exactly)
    // Values that bring help of their own would spread the whole help over three lines an option.
    #[arg(long, value_enum, default_value_t = Phases::Both, hide_possible_values = true)]
    phases: Phases,
}

/// A margin, or none. (clap gives an `Option` in an `Option` another meaning.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MarginChoice(pub Option<SkipMargin>);

impl FromStr for MarginChoice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a number of nats > 0, Aln+B or Aln+B:L for A ln(keys) + B, or off";
        let margin = if text == "off" { None } else { Some(text.parse().map_err(|_| expected)?) };
        Ok(Self(margin))
    }
}

fn kernels() -> impl TypedValueParser<Value = KernelKind> {
    PossibleValuesParser::new(KernelKind::ALL.map(KernelKind::name))
        .try_map(|name| name.parse::<KernelKind>().map_err(|error: AttentionError| error))
}

fn parse_theta(text: &str) -> Result<f32, String> {
    let theta = text.parse().ok().filter(|theta: &f32| theta.is_finite() && *theta >= 0.0);
    theta.ok_or_else(|| "expected a finite number >= 0".into())
}

fn parse_share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share: &f32| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number in 0..=1".into())
}

pub(crate) fn parse_store(text: &str) -> Result<KvStore, String> {
    text.parse().map_err(|_| "expected f32, f16, bf16, int8 or compact".into())
}

pub(crate) fn parse_precision(text: &str) -> Result<Precision, String> {
    text.parse().map_err(|_| "expected f32, bf16 or int16".into())
}

impl KernelArgs {
    /// Settings from these flags alone, such as `--kernel dense --kv int8`.
    ///
    /// # Errors
    /// What is wrong, in one line.
    pub fn parse<'f>(flags: impl IntoIterator<Item = &'f str>) -> Result<Self, String> {
        let command = Self::augment_args(clap::Command::new("settings").no_binary_name(true));
        let settings = command.try_get_matches_from(flags).and_then(|flags| Self::from_arg_matches(&flags));
        // The message spans lines: the first says what is wrong.
        settings.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned())
    }

    /// Which kernel.
    pub fn kind(&self) -> KernelKind {
        self.kernel
    }

    /// The same with this store, unless another one was asked for.
    #[must_use]
    pub fn or_store(self, store: KvStore) -> Self {
        Self { kv: self.kv.or(Some(store)), ..self }
    }

    /// Checks the settings against the model.
    ///
    /// # Errors
    /// For a profile that cannot be read or is not for this model, and for settings that no kernel takes.
    pub fn resolve(&self, model: &Model) -> anyhow::Result<KernelChoice> {
        let profile = self.profile(model)?;
        let base = match &profile {
            Some(profile) => profile.settings.spec().clone(),
            None if self.paper => PaperRule::default().into(),
            None => KernelSpec::default(),
        };
        let (given, config) = (self.given(), model.config());
        self.check_lengths(config.context_length)?;
        let (spec, shape) = (base.with(&given), model.attention_shape());
        let context = model.kernel_context();
        spec.validate(shape, config.layers)
            .and_then(|()| spec.validate_on(context.isa, config.context_length))
            .map_err(by_option)?;
        Ok(KernelChoice::new(spec, context, profile, given.exact_prompt, self.phases))
    }

    /// Checks that what is asked to be exact leaves something of the model's context that is not.
    fn check_lengths(&self, context: usize) -> anyhow::Result<()> {
        let window = match self.window {
            Some(ExactWindow::Sliding(keys)) => Some(keys),
            _ => None,
        };
        for (option, given) in [("--window", window), ("--exact-prompt", self.exact_prompt)] {
            if let Some(got) = given.filter(|keys| *keys > context) {
                anyhow::bail!(
                    "{option}: expected at most {context}, the model's context, got {got}; --kernel dense is exact everywhere"
                );
            }
        }
        Ok(())
    }

    /// What has been said on the command line.
    fn given(&self) -> SpecOverrides {
        let target = self.target_sparsity.map(TargetSparsity::new).map(ThresholdPolicy::TargetSparsity);
        SpecOverrides::default()
            .kernel(self.kernel)
            .store(self.kv.unwrap_or(KvStore::F16))
            .precision(self.precision)
            .thresholds(target.or(self.theta.map(ThresholdPolicy::Uniform)))
            .exact_window(self.window)
            .exact_sinks(self.sinks)
            .skip_margin(self.skip_margin.map(|margin| margin.0))
            .exact_prompt(self.exact_prompt)
    }

    /// The profile to start from: the one that is named, or else the one that comes with the program, unless other thresholds
    /// have been asked for.
    fn profile(&self, model: &Model) -> anyhow::Result<Option<ModelProfile>> {
        match &self.profile {
            Some(path) if path.as_os_str() == "none" => Ok(None),
            Some(path) => ModelProfile::read(path, model.config()).map(Some),
            None if self.theta.or(self.target_sparsity).is_some() || self.paper => Ok(None),
            None => Ok(ModelProfile::built_in(model)),
        }
    }
}

/// The complaint with the name of the option instead of the field.
fn by_option(error: SpecError) -> anyhow::Error {
    let SpecError { field, expected, got } = error;
    let option = match field.as_str() {
        "store" => "--kv".to_owned(),
        "thresholds.theta" => "--theta".to_owned(),
        "thresholds.target_sparsity" => "--target-sparsity".to_owned(),
        "kernel" | "precision" | "window" | "sinks" | "skip_margin" | "exact_prompt" => {
            format!("--{}", field.replace('_', "-"))
        }
        of_profile => format!("--profile: {of_profile}"),
    };
    anyhow::anyhow!("{option}: expected {expected}, got {got}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_parse() {
        assert_eq!("off".parse(), Ok(MarginChoice(None)));
        assert_eq!("4.5".parse(), Ok(MarginChoice(Some(SkipMargin::Fixed(4.5)))));
        assert_eq!("0.6ln+0.5".parse(), Ok(MarginChoice(Some(SkipMargin::length(0.5, 0.6)))));
        for bad in ["on", "0", "-4", "inf", "nan", "", "ln:"] {
            assert!(bad.parse::<MarginChoice>().is_err(), "{bad}");
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
