//! Settings of the approximate kernels.

use std::path::PathBuf;

use deltallm::models::Model;
use deltallm::{ExactWindow, KernelSpec, Mask, SpecOverrides, ThresholdPolicy};
use deltallm_cli::{MarginChoice, ModelProfile, describe_margins};

/// Settings from the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Approximate variants")]
pub struct SettingsArgs {
    /// Settings from a calibration (JSON), or none; with --text only [default: built-in ones, if there are any for the model]
    #[arg(long, value_name = "FILE|none", requires = "text")]
    profile: Option<PathBuf>,
    /// One threshold for all key channels, instead of a profile or of --zero-fraction
    #[arg(long, value_name = "X", value_parser = parse_theta, conflicts_with_all = ["profile", "zero_fraction"])]
    pub theta: Option<f32>,
    /// Keys scored exactly: the latest N, or block:SCALE of the prompt [default: the profile's, or 64]
    #[arg(long, value_name = "N|block:SCALE")]
    window: Option<ExactWindow>,
    /// First keys, always scored exactly [default: the profile's, or 4]
    #[arg(long, value_name = "N")]
    sinks: Option<usize>,
    /// Leave out the value of a key that scores more than T nats below the best exact key. Aln+B: T = A ln(keys) + B, at
    /// least 3.5; with :L, at least L. T is 1.5 larger in decoding [default: the profile's, or off]
    #[arg(long, value_name = "T|Aln+B[:L]|off", conflicts_with = "values_skipped")]
    skip_margin: Option<MarginChoice>,
}

fn parse_theta(text: &str) -> Result<f32, String> {
    let theta = text.parse().ok().filter(|theta: &f32| theta.is_finite() && *theta >= 0.0);
    theta.ok_or_else(|| "expected a finite number >= 0".into())
}

impl SettingsArgs {
    /// The settings of a model's layers, and what they are in words.
    ///
    /// # Errors
    /// For a profile that cannot be read or belongs to another model, and for settings that no kernel takes.
    pub fn for_model(&self, model: &Model) -> anyhow::Result<(String, KernelSpec)> {
        let profile = match (&self.profile, self.theta) {
            (Some(path), _) if path.as_os_str() == "none" => None,
            (Some(path), _) => Some(ModelProfile::read(path, model.config())?),
            (None, Some(_)) => None,
            (None, None) => ModelProfile::built_in(model),
        };
        let (words, base) = match (&profile, self.theta) {
            (Some(profile), _) => (format!("profile {}", profile.name), profile.settings.spec().clone()),
            (None, Some(theta)) => (format!("theta {theta}"), KernelSpec::default()),
            (None, None) => ("thresholds for a zero fraction of 0.3".to_owned(), KernelSpec::default()),
        };
        let (spec, layers) = (base.with(&self.given(self.theta)), model.config().layers);
        spec.validate(model.attention_shape(), layers)?;
        let masks: Vec<Mask> = (0..layers).map(|layer| model.config().mask(layer)).collect();
        Ok((describe(&words, &spec, &masks), spec))
    }

    /// The settings of `layers` equal layers; the skip margin is still to be chosen for `values_skipped`, if that is given.
    pub fn uniform(&self, layers: usize, theta: f32, values_skipped: Option<f64>) -> (String, KernelSpec) {
        let spec = KernelSpec::default().with(&self.given(Some(theta)));
        let description = describe(&format!("theta {theta:.3}"), &spec, &vec![Mask::Causal; layers]);
        let chosen =
            values_skipped.map(|share| format!("; skip margin such that {share} of far values are skipped"));
        (description + &chosen.unwrap_or_default(), spec)
    }

    /// Whether the margin is given, be it off.
    pub fn has_margin(&self) -> bool {
        self.skip_margin.is_some()
    }

    /// What has been said on the command line, and the threshold.
    fn given(&self, theta: Option<f32>) -> SpecOverrides {
        SpecOverrides::default()
            .thresholds(theta.map(ThresholdPolicy::Uniform))
            .exact_window(self.window)
            .exact_sinks(self.sinks)
            .skip_margin(self.skip_margin.map(|margin| margin.0))
    }
}

/// The settings in words, for layers of these masks.
fn describe(thresholds: &str, spec: &KernelSpec, masks: &[Mask]) -> String {
    let layers = masks.len();
    let margins = describe_margins((0..layers).filter_map(|layer| spec.layer(layer).skip_margin));
    let margins = margins.map_or(String::new(), |margins| format!(", skip margin {margins}"));
    let dense = |&(layer, mask): &(usize, &Mask)| spec.layer(layer).dense || spec.is_dense_under(*mask);
    let dense = masks.iter().enumerate().filter(dense).count();
    format!(
        "{thresholds}, window {}, {} sinks{margins}, {dense} of {layers} layers dense",
        spec.exact_window, spec.exact_sinks
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_parse() {
        assert_eq!(parse_theta("0.5"), Ok(0.5));
        assert!(parse_theta("nan").is_err());
    }
}
