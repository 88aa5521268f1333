//! Thresholds of all layers for a wanted zero fraction.

use super::{ChannelWeights, RateCurves};

/// How thresholds follow from the measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum AllocationRule {
    /// `alpha * mass^(-power / 2)`.
    Mass {
        /// 1 is the optimum for errors that are uniform within the threshold.
        power: f64,
    },
    /// `alpha * output^(-power / 2)`.
    Output {
        /// As in `Mass`.
        power: f64,
    },
}

/// Measurements of all layers, from which thresholds for any zero fraction can be read off.
#[derive(Debug)]
pub struct Allocation {
    layers: Vec<(ChannelWeights, RateCurves)>,
}

impl Allocation {
    /// Weights and curves of every layer, measured on the same texts.
    pub fn new(layers: Vec<(ChannelWeights, RateCurves)>) -> Self {
        Self { layers }
    }

    /// Thresholds, `[layers, kv_heads * head_dim]`, whose zero fraction on the calibration texts is `zero_fraction` (as near as
    /// the rule can come, above rather than below).
    pub fn thresholds(&self, rule: AllocationRule, zero_fraction: f64) -> Vec<Vec<f32>> {
        // The zero fraction rises with the parameter: bisect its logarithm over 120 octaves.
        let (mut low, mut high) = (-60.0_f64, 60.0_f64);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if self.zero_fraction(&self.at(rule, middle.exp2())) < zero_fraction {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.at(rule, high.exp2())
    }

    /// The zero fraction of `thresholds`, `[layers, kv_heads * head_dim]`, on the calibration texts.
    pub fn zero_fraction(&self, thresholds: &[Vec<f32>]) -> f64 {
        let (mut sent, mut all) = (0.0, 0.0);
        for ((_, curves), thresholds) in self.layers.iter().zip(thresholds) {
            sent += thresholds.iter().enumerate().map(|(j, t)| curves.sent(j, *t)).sum::<f64>();
            all += (curves.tokens() * curves.channels()) as f64;
        }
        1.0 - sent / f64::max(all, 1.0)
    }

    fn at(&self, rule: AllocationRule, alpha: f64) -> Vec<Vec<f32>> {
        let layer = |(weights, _): &(ChannelWeights, RateCurves)| {
            let (weights, power) = match rule {
                AllocationRule::Mass { power } => (&weights.mass, power),
                AllocationRule::Output { power } => (&weights.output, power),
            };
            let threshold = |w: &f64| (alpha * w.powf(-0.5 * power)) as f32;
            weights.iter().map(|w| threshold(w).min(RateCurves::LARGEST)).collect()
        };
        self.layers.iter().map(layer).collect()
    }
}
