//! The attention settings of the command line, and the kernels they stand for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use deltallm::models::Llama;
use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, DeltaAttention, DenseAttention, ElementType,
    HybridAttention, HybridConfig, ModelFingerprint, ThresholdPolicy, ThresholdProfile, Window,
};
use serde::Serialize;

use crate::PrefillOnly;

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
    /// Thresholds from a calibration (JSON), instead of --theta
    #[arg(long, value_name = "FILE", conflicts_with = "theta")]
    profile: Option<PathBuf>,
    /// One threshold for all key channels
    #[arg(long, value_name = "X", default_value = "0.6", value_parser = parse_theta)]
    theta: f32,
    /// Keys scored exactly: the latest N, or block:SCALE for the paper's blocks of SCALE times the prompt
    #[arg(long, value_name = "N|block:SCALE", default_value = "64", value_parser = parse_window)]
    window: Window,
    /// First keys, always scored exactly
    #[arg(long, value_name = "N", default_value_t = 4)]
    sinks: usize,
    /// Skip values whose key scores T nats below the best exact one
    #[arg(long, value_name = "T|off", default_value = "off", value_parser = parse_margin)]
    skip_margin: SkipMargin,
    /// Element type of the cache: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_element)]
    kv: ElementType,
    /// Where attention is approximate: both, or prefill alone (generated tokens see everything exactly)
    #[arg(long, value_enum, default_value_t = Phases::Both, hide_possible_values = true)]
    phases: Phases,
}

/// A margin, or none. (clap gives a bare `Option` field another meaning.)
#[derive(Debug, Clone, Copy, PartialEq)]
struct SkipMargin(Option<f32>);

fn parse_theta(text: &str) -> Result<f32, String> {
    let theta = text.parse().ok().filter(|theta: &f32| theta.is_finite() && *theta >= 0.0);
    theta.ok_or_else(|| "expected a finite number >= 0".into())
}

fn parse_window(text: &str) -> Result<Window, String> {
    let window = match text.strip_prefix("block:") {
        Some(scale) => {
            let scale = scale.parse().ok().filter(|scale| *scale > 0.0 && *scale <= 1.0);
            scale.map(|scale| Window::Block { scale })
        }
        None => text.parse().ok().filter(|keys| *keys >= 1).map(Window::Sliding),
    };
    window.ok_or_else(|| "expected a number of keys >= 1, or block:SCALE with a SCALE in (0, 1]".into())
}

fn parse_margin(text: &str) -> Result<SkipMargin, String> {
    if text == "off" {
        return Ok(SkipMargin(None));
    }
    let margin = text.parse().ok().filter(|margin: &f32| margin.is_finite() && *margin > 0.0);
    margin
        .map(|margin| SkipMargin(Some(margin)))
        .ok_or_else(|| "expected a number of nats > 0, or off".into())
}

fn parse_element(text: &str) -> Result<ElementType, String> {
    match text {
        "compact" => Err("not in this version yet: expected f32, f16 or bf16".into()),
        name => name.parse().map_err(|_| "expected f32, f16 or bf16".into()),
    }
}

impl KernelArgs {
    /// Checks the settings against the model.
    ///
    /// # Errors
    /// For a profile that cannot be read or is not for this model, and for settings that no kernel takes.
    pub fn resolve(&self, model: &Llama) -> anyhow::Result<KernelChoice> {
        let thresholds = match &self.profile {
            Some(path) => ThresholdPolicy::Profile(Arc::new(read_profile(path, model)?)),
            None => ThresholdPolicy::Uniform(self.theta),
        };
        let context = model.config().context_length;
        anyhow::ensure!(
            self.sinks <= context,
            "--sinks: expected at most {context}, the model's context, got {}",
            self.sinks
        );
        let options = AttentionOptions::new(model.attention_shape())?;
        let choice = KernelChoice {
            kind: self.kernel,
            options: AttentionOptions { element: self.kv, ..options },
            config: HybridConfig {
                window: self.window,
                sinks: self.sinks,
                skip_margin: self.skip_margin.0,
                ..HybridConfig::new(thresholds)
            },
            profile: self.profile.as_ref().map(|path| path.display().to_string()),
            phases: self.phases,
        };
        choice.make(0)?;
        Ok(choice)
    }
}

fn read_profile(path: &Path, model: &Llama) -> anyhow::Result<ThresholdProfile> {
    let name = || format!("--profile {}", path.display());
    let expected = || format!("{}: expected a file that calibrate has written", name());
    let text = std::fs::read_to_string(path).with_context(expected)?;
    let profile: ThresholdProfile = serde_json::from_str(&text).with_context(expected)?;
    let config = model.config();
    profile
        .check(ModelFingerprint(config.fingerprint()), [config.layers, config.kv_heads, config.head_dim])
        .with_context(|| format!("{} (calibrate makes one for this model)", name()))?;
    Ok(profile)
}

/// Settings that fit the model: makes its kernels.
#[derive(Debug, Clone)]
pub struct KernelChoice {
    kind: KernelKind,
    options: AttentionOptions,
    config: HybridConfig,
    profile: Option<String>,
    phases: Phases,
}

impl KernelChoice {
    /// The kernel of one layer, with an empty cache.
    ///
    /// # Errors
    /// As the kernels' constructors.
    pub fn make(&self, layer: usize) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        let kernel: Box<dyn AttentionKernel> = match self.kind {
            KernelKind::Dense => return Ok(Box::new(DenseAttention::new(&self.options)?)),
            KernelKind::Delta => {
                Box::new(DeltaAttention::new(&self.options, self.config.thresholds.clone(), layer)?)
            }
            KernelKind::Hybrid => {
                let config = HybridConfig { layer, ..self.config.clone() };
                Box::new(HybridAttention::new(&self.options, &config)?)
            }
        };
        Ok(match self.phases {
            Phases::Both => kernel,
            Phases::Prefill => Box::new(PrefillOnly::new(DenseAttention::new(&self.options)?, kernel)),
        })
    }

    /// Exact attention with the same cache type: what the choice is compared with.
    #[must_use]
    pub fn dense(&self) -> Self {
        Self { kind: KernelKind::Dense, ..self.clone() }
    }

    /// Which kernel.
    pub fn kind(&self) -> KernelKind {
        self.kind
    }

    /// The settings for a report; those that the kernel does not use are absent.
    pub fn settings(&self) -> KernelSettings {
        let (coded, hybrid) = (self.kind != KernelKind::Dense, self.kind == KernelKind::Hybrid);
        let theta = match self.config.thresholds {
            ThresholdPolicy::Uniform(theta) => Some(theta),
            _ => None,
        };
        KernelSettings {
            theta: theta.filter(|_| coded),
            profile: self.profile.clone().filter(|_| coded),
            window: hybrid.then(|| match self.config.window {
                Window::Block { scale } => format!("block:{scale}"),
                Window::Sliding(keys) => keys.to_string(),
                other => format!("{other:?}"),
            }),
            sinks: hybrid.then_some(self.config.sinks),
            skip_margin: self.config.skip_margin.filter(|_| hybrid),
            phases: coded.then_some(self.phases),
            kv: self.options.element,
            simd: self.options.simd.to_string(),
        }
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense => "dense",
            Self::Delta => "delta",
            Self::Hybrid => "hybrid",
        })
    }
}

/// `hybrid: theta 0.6, window 64, 4 sinks, cache f16`
impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings();
        write!(f, "{}: ", self.kind)?;
        if let Some(theta) = settings.theta {
            write!(f, "theta {theta}, ")?;
        }
        if let Some(profile) = settings.profile {
            write!(f, "profile {profile}, ")?;
        }
        if let Some(window) = settings.window {
            write!(f, "window {window}, ")?;
        }
        if let Some(sinks) = settings.sinks {
            write!(f, "{sinks} sinks, ")?;
        }
        if let Some(margin) = settings.skip_margin {
            write!(f, "skip margin {margin}, ")?;
        }
        if settings.phases == Some(Phases::Prefill) {
            write!(f, "in prefill only, ")?;
        }
        write!(f, "cache {}, {}", settings.kv, settings.simd)
    }
}

/// Attention settings as they appear in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelSettings {
    /// One threshold for all.
    pub theta: Option<f32>,
    /// File of calibrated thresholds.
    pub profile: Option<String>,
    /// As on the command line.
    pub window: Option<String>,
    /// First keys, always exact.
    pub sinks: Option<usize>,
    /// Nats; absent when values are not skipped.
    pub skip_margin: Option<f32>,
    /// When attention is approximate.
    pub phases: Option<Phases>,
    /// Element type of the cache.
    pub kv: ElementType,
    /// Instruction set.
    pub simd: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_parse() {
        assert_eq!(parse_window("64"), Ok(Window::Sliding(64)));
        assert_eq!(parse_window("block:0.05"), Ok(Window::Block { scale: 0.05 }));
        for bad in ["0", "-1", "", "block", "block:", "block:0", "block:1.5", "block:nan", "1.5"] {
            assert!(parse_window(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn margins_parse() {
        assert_eq!(parse_margin("off"), Ok(SkipMargin(None)));
        assert_eq!(parse_margin("4.5"), Ok(SkipMargin(Some(4.5))));
        for bad in ["on", "0", "-4", "inf", "nan", ""] {
            assert!(parse_margin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn thresholds_parse() {
        assert_eq!(parse_theta("0"), Ok(0.0));
        for bad in ["-0.1", "inf", "nan", "x"] {
            assert!(parse_theta(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_compact_cache_is_known_by_name() {
        assert_eq!(parse_element("bf16"), Ok(ElementType::Bf16));
        assert!(parse_element("compact").unwrap_err().contains("not in this version"));
        assert!(parse_element("int8").is_err());
    }
}
