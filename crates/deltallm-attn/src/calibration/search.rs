//! The search for settings: thresholds first, then margins, then what each layer is to do.

use std::sync::Arc;

use deltallm_core::{ModelFingerprint, ThresholdPolicy, ThresholdProfile};

use super::{
    allocation::Allocation,
    error::CalibrationError,
    found::Calibrated,
    pays::{layer_store, pays_from},
    request::CalibrationRequest,
    score::Score,
};
use crate::{AttentionShape, CalibrationGoal, ExactWindow, KernelSpec, LayerSpec, SkipMargin};

/// Zero fractions among which the one for a divergence is sought, the one that is tried first, and the steps after it.
const ZERO_FRACTIONS: [f64; 2] = [FEWEST_ZEROS, 0.95];
const FEWEST_ZEROS: f64 = 0.05;
const USUAL_ZERO_FRACTION: f64 = 0.63;
const ZERO_FRACTION_STEPS: usize = 6;
/// What skipping may cost at least where a share of zeros is asked for, nats: about what the margin of the default costs
/// (`docs/results/default.md`).
const LEAST_FOR_SKIPPING: f64 = 0.001;
/// Margins at the context of the calibration among which one is sought, nats, and the steps of that search.
const MARGINS: [f64; 2] = [SkipMargin::LEAST as f64, 9.0];
const MARGIN_STEPS: usize = 5;

/// Settings that the search scores at most.
pub(super) fn runs(request: &CalibrationRequest) -> usize {
    let search = if matches!(request.goal, CalibrationGoal::Kl(_)) { 1 + ZERO_FRACTION_STEPS } else { 0 };
    let margins = if request.skips { MARGIN_STEPS } else { 0 };
    usize::from(search + margins > 0) + margins + search + 2
}

/// Scores settings.
pub(super) type ScoreSpec<'a> = dyn FnMut(&KernelSpec) -> Result<Score, CalibrationError> + 'a;

/// What was measured, and the engine that scores.
pub(super) struct Search<'a> {
    pub(super) shape: AttentionShape,
    pub(super) layers: usize,
    pub(super) request: &'a CalibrationRequest,
    /// The layers that are coded at all; the others are dense because their queries attend to few keys.
    pub(super) coded: &'a [bool],
    pub(super) allocation: &'a Allocation,
    /// Tokens of a window.
    pub(super) context: usize,
    pub(super) score: &'a mut ScoreSpec<'a>,
}

impl Search<'_> {
    /// The settings that the request asks for, but for how many tokens were looked at.
    ///
    /// Thresholds and skipping may cost the same: what each adds to the divergence of the fewest zeros. Where linear layers round their
    /// inputs, nearly all of that one is rounding, which a difference in the last digit sets off. It says nothing of either.
    pub(super) fn find(mut self) -> Result<Calibrated, CalibrationError> {
        let least = match self.request.goal {
            CalibrationGoal::ZeroFraction(_) if !self.request.skips => 0.0,
            _ => self.score(&self.spec(&self.thresholds(FEWEST_ZEROS)?))?.kl,
        };
        let zero_fraction = match self.request.goal {
            CalibrationGoal::ZeroFraction(share) => share,
            CalibrationGoal::Kl(limit) if limit < least => {
                return Err(CalibrationError::Unreachable { limit, zero_fraction: FEWEST_ZEROS, least });
            }
            CalibrationGoal::Kl(limit) if self.request.skips => self.zero_fraction(limit.midpoint(least))?,
            CalibrationGoal::Kl(limit) => self.zero_fraction(limit)?,
        };
        let thresholds = self.thresholds(zero_fraction)?;
        let mut spec = self.spec(&thresholds);
        let mut score = self.score(&spec)?;
        let without_skipping = score.held_out();
        if self.request.skips {
            let limit = match self.request.goal {
                CalibrationGoal::ZeroFraction(_) => {
                    without_skipping.kl + (without_skipping.kl - least).max(LEAST_FOR_SKIPPING)
                }
                CalibrationGoal::Kl(limit) => limit,
            };
            (spec, score) = self.margin(&spec, limit)?.unwrap_or((spec, score));
        }
        let skips = spec.layers.iter().any(|layer| layer.skip_margin.is_some());
        let pays: Vec<Option<usize>> = score.layers.iter().map(|stats| pays_from(stats, skips)).collect();
        let layer = |index: usize| LayerSpec {
            dense: pays[index].is_none(),
            store: self.coded[index].then(|| layer_store(self.request.store, &score.layers[index])).flatten(),
            ..spec.layers[index]
        };
        let layers: Vec<LayerSpec> = (0..self.layers).map(layer).collect();
        if layers != spec.layers {
            spec.layers = layers;
            score = self.score(&spec)?;
        }
        // Short prompts will cost nothing; what has been measured is what long ones cost.
        for (layer, pays) in spec.layers.iter_mut().zip(&pays) {
            layer.exact_prompt = Some(self.request.exact_prompt.or(*pays).unwrap_or_default());
        }
        Ok(Calibrated {
            zero_fraction: self.allocation.zero_fraction(&rows(&thresholds)),
            spec,
            thresholds,
            goal: self.request.goal,
            held_out: score.held_out(),
            without_skipping,
            tokens: 0,
            context: self.context,
            verified: Vec::new(),
        })
    }

    fn score(&mut self, spec: &KernelSpec) -> Result<Score, CalibrationError> {
        spec.validate(self.shape, self.layers)?;
        let score = (self.score)(spec)?;
        score.check(self.layers)?;
        Ok(score)
    }

    /// Thresholds of all layers.
    fn thresholds(&self, zero_fraction: f64) -> Result<Arc<ThresholdProfile>, CalibrationError> {
        let shape = [self.layers, self.shape.kv_heads(), self.shape.head_dim()];
        let thresholds = self.allocation.thresholds(zero_fraction).concat();
        let thresholds = thresholds.into_iter().map(four_digits).collect();
        Ok(Arc::new(ThresholdProfile::new(ModelFingerprint(0), shape, thresholds)?))
    }

    /// Settings with these thresholds, which skip nothing.
    fn spec(&self, thresholds: &Arc<ThresholdProfile>) -> KernelSpec {
        KernelSpec {
            store: self.request.store,
            scale: self.request.scale,
            softcap: self.request.softcap,
            thresholds: ThresholdPolicy::Profile(Arc::clone(thresholds)),
            exact_window: ExactWindow::Sliding(self.request.exact_window),
            exact_sinks: self.request.exact_sinks,
            skip_margin: None,
            layers: vec![LayerSpec::default(); self.layers],
            ..KernelSpec::default()
        }
    }

    /// The largest zero fraction whose divergence stays within `limit`, as that of the fewest zeros does.
    fn zero_fraction(&mut self, limit: f64) -> Result<f64, CalibrationError> {
        let ([mut low, mut high], mut next) = (ZERO_FRACTIONS, USUAL_ZERO_FRACTION);
        for _ in 0..=ZERO_FRACTION_STEPS {
            let spec = self.spec(&self.thresholds(next)?);
            if self.score(&spec)?.kl <= limit {
                low = next;
            } else {
                high = next;
            }
            next = 0.5 * (low + high);
        }
        Ok(low)
    }

    /// The settings with the smallest margin whose divergence stays within `limit`, if any does.
    fn margin(
        &mut self,
        spec: &KernelSpec,
        limit: f64,
    ) -> Result<Option<(KernelSpec, Score)>, CalibrationError> {
        let ([mut low, mut high], mut best) = (MARGINS, None);
        for _ in 0..MARGIN_STEPS {
            let nats = 0.5 * (low + high);
            let spec = self.with_margin(spec, nats);
            let score = self.score(&spec)?;
            if score.kl <= limit {
                (high, best) = (nats, Some((spec, score)));
            } else {
                low = nats;
            }
        }
        Ok(best)
    }

    /// The settings with a margin of so many nats for a query at the end of the context, in every layer that is coded.
    fn with_margin(&self, spec: &KernelSpec, nats: f64) -> KernelSpec {
        let base = nats - f64::from(SkipMargin::SLOPE) * (self.context as f64).ln();
        let margin = SkipMargin::length(four_digits(base as f32), SkipMargin::SLOPE);
        let mut spec = spec.clone();
        for (layer, coded) in spec.layers.iter_mut().zip(self.coded) {
            layer.skip_margin = coded.then_some(margin);
        }
        spec
    }
}

/// Thresholds layer by layer.
fn rows(thresholds: &ThresholdProfile) -> Vec<Vec<f32>> {
    let [_, kv_heads, head_dim] = thresholds.shape();
    thresholds.thresholds().chunks(kv_heads * head_dim).map(<[f32]>::to_vec).collect()
}

/// Four significant digits say all that a measured threshold can.
fn four_digits(x: f32) -> f32 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_kept() {
        assert_eq!([0.123_456, 1234.56, 0.0].map(four_digits), [0.123_5, 1235.0, 0.0]);
    }
}
