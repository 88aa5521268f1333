//! Thresholds of all layers for a wanted zero fraction.

use super::{ChannelWeights, RateCurves};
use crate::AttentionError;

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
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for a layer whose weights and curves are not of the same channels.
    pub fn new(layers: Vec<(ChannelWeights, RateCurves)>) -> Result<Self, AttentionError> {
        for (weights, curves) in &layers {
            for (input, got) in [("mass", weights.mass.len()), ("output", weights.output.len())] {
                let expected = curves.channels();
                if got != expected {
                    return Err(AttentionError::Shape { input, dimension: "channels", expected, got });
                }
            }
        }
        Ok(Self { layers })
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

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    /// Two layers of two channels; keys wander by different strides.
    fn allocation() -> Allocation {
        let layer = |stride: f32, weights: [f64; 2]| {
            let mut curves = RateCurves::new(2);
            let key = |t: usize, j: usize| stride * (j + 1) as f32 * ((t * t) as f32 * 0.3).sin();
            curves.add(Array3::from_shape_fn((400, 1, 2), |(t, _, j)| key(t, j)).view());
            (ChannelWeights { mass: weights.to_vec(), output: weights.map(|w| w * w).to_vec() }, curves)
        };
        Allocation::new(vec![layer(1.0, [1.0, 4.0]), layer(0.3, [16.0, 1e-4])]).unwrap()
    }

    const RULES: [AllocationRule; 2] =
        [AllocationRule::Mass { power: 1.0 }, AllocationRule::Output { power: 0.75 }];

    #[test]
    fn the_zero_fraction_is_met() {
        for rule in RULES {
            for wanted in [0.1, 0.5, 0.9] {
                let thresholds = allocation().thresholds(rule, wanted);
                assert!((allocation().zero_fraction(&thresholds) - wanted).abs() < 1e-3, "{rule:?} {wanted}");
            }
        }
    }

    #[test]
    fn a_channel_with_four_times_the_weight_gets_half_the_threshold() {
        let thresholds = allocation().thresholds(AllocationRule::Mass { power: 1.0 }, 0.3);
        assert!((thresholds[0][0] / thresholds[0][1] - 2.0).abs() < 1e-4);
        assert!((thresholds[0][1] / thresholds[1][0] - 2.0).abs() < 1e-4);
    }

    #[test]
    fn what_cannot_be_had_gives_the_nearest_thresholds() {
        for rule in RULES {
            for wanted in [-1.0, 0.0, 1.0, 2.0] {
                let thresholds = allocation().thresholds(rule, wanted);
                assert!(thresholds.concat().iter().all(|t| (0.0..=RateCurves::LARGEST).contains(t)));
            }
        }
        let silent = ChannelWeights { mass: vec![0.0; 2], output: vec![0.0; 2] };
        let allocation = Allocation::new(vec![(silent.clone(), RateCurves::new(2))]).unwrap();
        assert_eq!(allocation.thresholds(RULES[0], 0.5), [[RateCurves::LARGEST; 2]]);
        assert!(Allocation::new(vec![(silent, RateCurves::new(3))]).is_err());
    }
}
