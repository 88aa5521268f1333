//! Settings of the approximate kernels, layer by layer.

use std::path::PathBuf;
use std::sync::Arc;

use deltallm::models::Model;
use deltallm::{HybridConfig, KvStore, SkipMargin, ThresholdPolicy, Window};
use deltallm_examples::{ModelProfile, describe_margins};

/// What the delta, hybrid and compact variants of one layer do.
#[derive(Debug, Clone)]
pub struct LayerSettings {
    /// Thresholds, window, sinks and skip margin.
    pub config: HybridConfig,
    /// The profile wants this layer exact: hybrid and compact variants run dense.
    pub dense: bool,
    /// The store that the profile wants for this layer; the compact variant takes it, the others have their own.
    pub store: Option<KvStore>,
}

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
    window: Option<Window>,
    /// First keys, always scored exactly [default: the profile's, or 4]
    #[arg(long, value_name = "N")]
    sinks: Option<usize>,
    /// Skip values whose key scores T nats below the best exact one; ln:C is ln(keys) - C, at least 3; ln:C:L, at least L
    /// [default: the profile's, or off]
    #[arg(long, value_name = "T|ln:C[:L]|off", value_parser = parse_margin, conflicts_with = "values_skipped")]
    skip_margin: Option<Margin>,
}

/// A margin, or none. (clap gives an `Option` in an `Option` another meaning.)
#[derive(Debug, Clone, Copy, PartialEq)]
struct Margin(Option<SkipMargin>);

fn parse_theta(text: &str) -> Result<f32, String> {
    let theta = text.parse().ok().filter(|theta: &f32| theta.is_finite() && *theta >= 0.0);
    theta.ok_or_else(|| "expected a finite number >= 0".into())
}

fn parse_margin(text: &str) -> Result<Margin, String> {
    match text {
        "off" => Ok(Margin(None)),
        _ => text.parse().map(|margin| Margin(Some(margin))).map_err(|error| format!("{error}, or off")),
    }
}

impl SettingsArgs {
    /// The settings of a model's layers, and what they are in words.
    ///
    /// # Errors
    /// For a profile that cannot be read or belongs to another model.
    pub fn for_model(&self, model: &Model) -> anyhow::Result<(String, Vec<LayerSettings>)> {
        let profile = match (&self.profile, self.theta) {
            (Some(path), _) if path.as_os_str() == "none" => None,
            (Some(path), _) => Some(ModelProfile::read(path, model)?),
            (None, Some(_)) => None,
            (None, None) => ModelProfile::built_in(model),
        };
        let layers = 0..model.config().layers;
        let Some(profile) = profile else {
            let (words, config) = match self.theta {
                Some(theta) => (format!("theta {theta}"), HybridConfig::new(ThresholdPolicy::Uniform(theta))),
                None => ("thresholds for a zero fraction of 0.45".to_owned(), HybridConfig::default()),
            };
            let config = self.overrule(config);
            let layer = |layer| LayerSettings {
                config: HybridConfig { layer, ..config.clone() },
                dense: false,
                store: None,
            };
            let settings: Vec<_> = layers.map(layer).collect();
            return Ok((describe(&words, &settings), settings));
        };
        let thresholds = ThresholdPolicy::Profile(Arc::clone(profile.settings.thresholds()));
        let layer = |(layer, plan): (usize, &deltallm::LayerPlan)| {
            let config = HybridConfig {
                thresholds: thresholds.clone(),
                layer,
                window: profile.settings.window(),
                sinks: profile.settings.sinks(),
                exact_prompt: self.skip_margin.map_or(plan.exact_prompt, |_| 0),
                skip_margin: plan.skip_margin,
            };
            LayerSettings { config: self.overrule(config), dense: plan.dense, store: plan.store }
        };
        let settings: Vec<_> = profile.settings.layers().iter().enumerate().map(layer).collect();
        Ok((describe(&format!("profile {}", profile.name), &settings), settings))
    }

    /// The settings of `layers` equal layers; the skip margin is still to be chosen for `values_skipped`, if that is given.
    pub fn uniform(
        &self,
        layers: usize,
        theta: f32,
        values_skipped: Option<f64>,
    ) -> (String, Vec<LayerSettings>) {
        let config = self.overrule(HybridConfig::new(ThresholdPolicy::Uniform(theta)));
        let settings = vec![LayerSettings { config, dense: false, store: None }; layers];
        let description = describe(&format!("theta {theta:.3}"), &settings);
        let chosen =
            values_skipped.map(|share| format!("; skip margin such that {share} of far values are skipped"));
        (description + &chosen.unwrap_or_default(), settings)
    }

    /// Whether the margin is given, be it off.
    pub fn has_margin(&self) -> bool {
        self.skip_margin.is_some()
    }

    fn overrule(&self, config: HybridConfig) -> HybridConfig {
        HybridConfig {
            window: self.window.unwrap_or(config.window),
            sinks: self.sinks.unwrap_or(config.sinks),
            skip_margin: self.skip_margin.map_or(config.skip_margin, |margin| margin.0),
            ..config
        }
    }
}

fn describe(thresholds: &str, settings: &[LayerSettings]) -> String {
    let Some(first) = settings.first() else { return thresholds.to_owned() };
    let margins = settings.iter().filter_map(|layer| layer.config.skip_margin);
    let margins =
        describe_margins(margins).map_or(String::new(), |margins| format!(", skip margin {margins}"));
    let dense = settings.iter().filter(|layer| layer.dense).count();
    format!(
        "{thresholds}, window {}, {} sinks{}, {dense} of {} layers dense",
        first.config.window,
        first.config.sinks,
        margins,
        settings.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_parse() {
        assert_eq!(parse_margin("off"), Ok(Margin(None)));
        assert_eq!(parse_margin("4"), Ok(Margin(Some(SkipMargin::Fixed(4.0)))));
        assert!(parse_margin("-1").unwrap_err().ends_with("or off"));
        assert!(parse_theta("nan").is_err());
    }
}
