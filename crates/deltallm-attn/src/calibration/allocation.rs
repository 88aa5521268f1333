//! Thresholds of all layers for a wanted zero fraction.

use super::RateCurves;
use crate::AttentionError;

/// `c` of equation 10 in `docs/method.md`; `docs/results/calibration.md` has what other powers cost.
const POWER: f64 = 0.75;

/// Measurements of all layers, from which thresholds for any zero fraction can be read off: those of equation 10 in
/// `docs/method.md`.
#[derive(Debug)]
pub(super) struct Allocation {
    layers: Vec<(Vec<f64>, RateCurves)>,
    /// Whether each layer is coded at all: only those count.
    coded: Vec<bool>,
}

impl Allocation {
    /// Sensitivities and rates of every layer, measured on the same texts, and whether the layer is coded.
    ///
    /// # Errors
    /// [`AttentionError::Shape`] for a layer whose sensitivities and rates are not of the same channels.
    pub(super) fn new(layers: Vec<(Vec<f64>, RateCurves)>, coded: Vec<bool>) -> Result<Self, AttentionError> {
        for (sensitivities, curves) in &layers {
            let (expected, got) = (curves.channels(), sensitivities.len());
            if got != expected {
                let (input, dimension) = ("sensitivities", "channels");
                return Err(AttentionError::Shape { input, dimension, expected, got });
            }
        }
        Ok(Self { layers, coded })
    }

    /// Thresholds, `[layers, kv_heads * head_dim]`, whose zero fraction on the calibration texts is `zero_fraction` (as near as
    /// they can come, above rather than below).
    pub(super) fn thresholds(&self, zero_fraction: f64) -> Vec<Vec<f32>> {
        // The zero fraction rises with the parameter: bisect its logarithm over 120 octaves.
        let (mut low, mut high) = (-60.0_f64, 60.0_f64);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if self.zero_fraction(&self.at(middle.exp2())) < zero_fraction {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.at(high.exp2())
    }

    /// The zero fraction of `thresholds`, `[layers, kv_heads * head_dim]`, on the calibration texts.
    pub(super) fn zero_fraction(&self, thresholds: &[Vec<f32>]) -> f64 {
        let (mut sent, mut all) = (0.0, 0.0);
        let coded = self.layers.iter().zip(thresholds).zip(&self.coded).filter(|(_, coded)| **coded);
        for (((_, curves), thresholds), _) in coded {
            sent += thresholds.iter().enumerate().map(|(j, t)| curves.sent(j, *t)).sum::<f64>();
            all += curves.tokens() as f64 * curves.channels() as f64;
        }
        1.0 - sent / f64::max(all, 1.0)
    }

    fn at(&self, alpha: f64) -> Vec<Vec<f32>> {
        let threshold = |g: &f64| ((alpha * g.powf(-0.5 * POWER)) as f32).min(RateCurves::LARGEST);
        self.layers.iter().map(|(sensitivities, _)| sensitivities.iter().map(threshold).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    /// Two layers of two channels; keys wander by different strides.
    fn allocation() -> Allocation {
        allocation_of(vec![true; 2])
    }

    fn allocation_of(coded: Vec<bool>) -> Allocation {
        let layer = |stride: f32, sensitivities: [f64; 2]| {
            let mut curves = RateCurves::new();
            let key = |t: usize, j: usize| stride * (j + 1) as f32 * ((t * t) as f32 * 0.3).sin();
            curves.add(Array3::from_shape_fn((400, 1, 2), |(t, _, j)| key(t, j)).view()).unwrap();
            (sensitivities.to_vec(), curves)
        };
        Allocation::new(vec![layer(1.0, [1.0, 16.0]), layer(0.3, [256.0, 1e-8])], coded).unwrap()
    }

    #[test]
    fn the_zero_fraction_is_met() {
        for wanted in [0.1, 0.5, 0.9] {
            let thresholds = allocation().thresholds(wanted);
            assert!((allocation().zero_fraction(&thresholds) - wanted).abs() < 1e-3, "{wanted}");
        }
    }

    #[test]
    fn layers_that_are_not_coded_do_not_count() {
        let second = allocation_of(vec![false, true]);
        let thresholds = second.thresholds(0.4);
        assert!((second.zero_fraction(&thresholds) - 0.4).abs() < 1e-3);
        assert!((allocation().zero_fraction(&thresholds) - 0.4).abs() > 0.05, "of both it is another one");
    }

    #[test]
    fn a_channel_that_is_16_times_as_sensitive_gets_a_threshold_lower_by_its_power() {
        let thresholds = allocation().thresholds(0.3);
        let expected = 16.0_f32.powf(0.75 / 2.0);
        assert!((thresholds[0][0] / thresholds[0][1] - expected).abs() < 1e-4);
        assert!((thresholds[0][1] / thresholds[1][0] - expected).abs() < 1e-4);
    }

    #[test]
    fn what_cannot_be_had_gives_the_nearest_thresholds() {
        for wanted in [-1.0, 0.0, 1.0, 2.0] {
            let thresholds = allocation().thresholds(wanted);
            assert!(thresholds.concat().iter().all(|t| (0.0..=RateCurves::LARGEST).contains(t)));
        }
        let mut curves = RateCurves::new();
        curves.add(Array3::zeros((5, 1, 2)).view()).unwrap();
        let silent = Allocation::new(vec![(vec![0.0; 2], curves.clone())], vec![true]).unwrap();
        assert_eq!(silent.thresholds(0.5), [[RateCurves::LARGEST; 2]]);
        assert!(Allocation::new(vec![(vec![0.0; 3], curves)], vec![true]).is_err());
    }
}
