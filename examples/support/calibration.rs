//! From a text and a model to attention settings: measure, allocate, search, measure again.

use std::sync::Arc;

use deltallm::attn::calibration::{Allocation, AllocationRule, RateCurves, Sensitivity};
use deltallm::attn::{CalibrationGoal, HeldOut};
use deltallm::models::{LogitRows, Model};
use deltallm::{
    AttentionError, AttentionOptions, AttentionProfile, DenseAttention, KvStore, LayerPlan, ModelFingerprint,
    SkipMargin, SparsityStats, ThresholdProfile, Window,
};

use crate::{HeldOutText, Measured};

/// How thresholds can follow from the sensitivities; the one that costs least on held-out text is taken.
pub const RULES: [AllocationRule; 3] = [
    AllocationRule::Mass { power: 1.0 },
    AllocationRule::Output { power: 1.0 },
    AllocationRule::Output { power: 0.75 },
];

/// Every so many queries of the calibration text one is looked at: neighbours say much the same.
const QUERY_STRIDE: usize = 2;
/// Zero fraction at which the rules are compared when none is asked for.
const USUAL_ZERO_FRACTION: f64 = 0.63;
/// Zero fractions among which the one for a divergence is sought, and the steps of that search.
const ZERO_FRACTIONS: [f64; 2] = [0.05, 0.95];
const ZERO_FRACTION_STEPS: usize = 6;
/// Skipping may bring the divergence to this multiple of what the thresholds alone cause: it may cost as much as they do.
const SKIP_SHARE: f64 = 2.0;
/// Slacks of the margin `ln(n) - slack` among which one is sought, and the steps of that search.
const SLACKS: [f32; 2] = [-1.0, 5.0];
const SLACK_STEPS: usize = 5;
/// A layer that saves less than this share of the time of attention runs dense.
const LEAST_GAIN: f64 = 0.1;
/// What one multiply-add costs in the sparse product of deltas, against one in the dense product: the sparse one reads a
/// row of queries for each (`docs/results/attention.md`).
const SPARSE_COST: f64 = 1.6;
/// A layer that skips less than this share of its far values keeps them in 16 bits: decoding would otherwise spend more on
/// conversion than it saves in reading.
const LEAST_SKIPPED: f64 = 0.4;

/// What to calibrate for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The goal.
    pub goal: CalibrationGoal,
    /// Keys in the exact sliding window.
    pub window: usize,
    /// First keys, always exact.
    pub sinks: usize,
    /// Whether to look for a margin of value skipping.
    pub skip: bool,
}

/// The sensitivities and rates of all layers on the calibration text.
pub struct Measurements(Allocation);

/// The settings found, and how.
pub struct Calibration {
    /// The settings, without their provenance.
    pub profile: AttentionProfile,
    /// The rule that was taken.
    pub rule: AllocationRule,
    /// What every rule cost at the same zero fraction.
    pub rules: Vec<(AllocationRule, HeldOut)>,
    /// Zero fraction on the calibration text.
    pub zero_fraction: f64,
    /// What the settings cost without skipping, and with it.
    pub without_skipping: HeldOut,
    /// What the settings cost.
    pub held_out: Measured,
}

impl Measurements {
    /// Runs dense attention over `windows` and measures every layer. `step` is told after every window.
    ///
    /// # Errors
    /// A failing model.
    pub fn new(
        model: &Model,
        options: &AttentionOptions,
        windows: &[&[u32]],
        request: &Request,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Self> {
        let config = model.config();
        let exact = [request.window, request.sinks];
        let mut layers: Vec<(Sensitivity, RateCurves)> = (model.weights().layers.iter())
            .map(|layer| {
                let output = layer.attention_output.weight.view();
                let sensitivity = Sensitivity::new(options, exact, output, QUERY_STRIDE)?;
                Ok((sensitivity, RateCurves::new(config.kv_heads * config.head_dim)))
            })
            .collect::<Result<_, AttentionError>>()?;
        for window in windows {
            let mut kernels =
                (0..config.layers).map(|_| DenseAttention::new(options)).collect::<Result<Vec<_>, _>>()?;
            let mut failure = None;
            model.forward_observed(window, &mut kernels, LogitRows::None, &mut |input| {
                let (sensitivity, curves) = &mut layers[input.layer];
                failure = failure.take().or(sensitivity.add(input.q, input.k, input.v, input.residual).err());
                curves.add(input.k);
            })?;
            failure.map_or(Ok(()), Err)?;
            step();
        }
        let layers = layers.into_iter().map(|(sensitivity, curves)| (sensitivity.finish(), curves));
        Ok(Self(Allocation::new(layers.collect())?))
    }
}

impl Calibration {
    /// Runs that [`find`](Self::find) makes at most.
    pub fn runs(request: &Request) -> usize {
        let search = if matches!(request.goal, CalibrationGoal::Kl(_)) { ZERO_FRACTION_STEPS } else { 0 };
        RULES.len() + search + 2 + if request.skip { SLACK_STEPS } else { 0 }
    }

    /// Looks for the settings that the request asks for. `step` is told after every run over the held-out text.
    ///
    /// # Errors
    /// A failing model, and a divergence that cannot be had.
    pub fn find(
        model: &Model,
        options: &AttentionOptions,
        measurements: &Measurements,
        held_out: &HeldOutText,
        request: &Request,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Self> {
        let mut search = Search { model, options, allocation: &measurements.0, held_out, request, step };
        let first = match request.goal {
            CalibrationGoal::ZeroFraction(share) => share,
            CalibrationGoal::Kl(_) => USUAL_ZERO_FRACTION,
        };
        let mut rules = Vec::new();
        for rule in RULES {
            rules.push((rule, search.measure(&search.profile(rule, first, None)?)?.total));
        }
        let best = rules.iter().min_by(|a, b| a.1.kl.total_cmp(&b.1.kl));
        let (rule, at_first) = *best.ok_or_else(|| anyhow::anyhow!("no allocation rule"))?;

        let zero_fraction = match request.goal {
            CalibrationGoal::ZeroFraction(share) => share,
            CalibrationGoal::Kl(limit) if request.skip => {
                search.zero_fraction(rule, limit / SKIP_SHARE, at_first.kl)?
            }
            CalibrationGoal::Kl(limit) => search.zero_fraction(rule, limit, at_first.kl)?,
        };
        let mut profile = search.profile(rule, zero_fraction, None)?;
        let mut measured = search.measure(&profile)?;
        let without_skipping = measured.total;
        if request.skip {
            let limit = match request.goal {
                CalibrationGoal::ZeroFraction(_) => without_skipping.kl * SKIP_SHARE,
                CalibrationGoal::Kl(limit) => limit,
            };
            if let Some((slack, result)) = search.slack(rule, zero_fraction, limit)? {
                (profile, measured) = (search.profile(rule, zero_fraction, Some(slack))?, result);
            }
        }
        let plans: Vec<LayerPlan> = (profile.layers().iter().zip(&measured.layers))
            .map(|(plan, stats)| LayerPlan {
                dense: gain(stats) < LEAST_GAIN,
                store: layer_store(options.store, stats),
                ..*plan
            })
            .collect();
        if plans != profile.layers() {
            profile = AttentionProfile::new(
                profile.thresholds().clone(),
                profile.window(),
                profile.sinks(),
                plans,
            )?;
            measured = search.measure(&profile)?;
        }
        let zero_fraction = search.allocation.zero_fraction(&rows(&profile));
        Ok(Self { profile, rule, rules, zero_fraction, without_skipping, held_out: measured })
    }
}

/// Share of the time of attention (half for scores, half for values) that deltas and skipping save.
fn gain(stats: &SparsityStats) -> f64 {
    let total = stats.total();
    let far = 1.0 - total.exact_share();
    let scores = 1.0 - SPARSE_COST * (1.0 - total.zero_fraction());
    far * 0.5 * (scores.max(0.0) + total.values_skipped())
}

/// The store of a layer, where those of the others differ: one that quantises must pay for itself.
fn layer_store(store: KvStore, stats: &SparsityStats) -> Option<KvStore> {
    let exact = KvStore::from(store.exact());
    let pays = stats.total().values_skipped() >= LEAST_SKIPPED;
    (store != exact).then_some(if pays { store } else { exact })
}

/// Thresholds of a profile, layer by layer.
fn rows(profile: &AttentionProfile) -> Vec<Vec<f32>> {
    let [_, kv_heads, head_dim] = profile.thresholds().shape();
    profile.thresholds().thresholds().chunks(kv_heads * head_dim).map(<[f32]>::to_vec).collect()
}

struct Search<'a> {
    model: &'a Model,
    options: &'a AttentionOptions,
    allocation: &'a Allocation,
    held_out: &'a HeldOutText,
    request: &'a Request,
    step: &'a mut dyn FnMut(),
}

impl Search<'_> {
    fn profile(
        &self,
        rule: AllocationRule,
        zero_fraction: f64,
        slack: Option<f32>,
    ) -> anyhow::Result<AttentionProfile> {
        let config = self.model.config();
        let shape = [config.layers, config.kv_heads, config.head_dim];
        let thresholds = self.allocation.thresholds(rule, zero_fraction).concat();
        let thresholds = thresholds.into_iter().map(four_digits).collect();
        let thresholds = ThresholdProfile::new(ModelFingerprint(config.fingerprint()), shape, thresholds)?;
        let plan = LayerPlan {
            skip_margin: slack.map(|slack| SkipMargin::Length { slack }),
            ..LayerPlan::default()
        };
        let window = Window::Sliding(self.request.window);
        Ok(AttentionProfile::new(
            Arc::new(thresholds),
            window,
            self.request.sinks,
            vec![plan; config.layers],
        )?)
    }

    fn measure(&mut self, profile: &AttentionProfile) -> anyhow::Result<Measured> {
        let measured = self.held_out.measure(self.model, &|layer| profile.kernel(self.options, layer))?;
        (self.step)();
        Ok(measured)
    }

    /// The largest zero fraction whose divergence stays within `limit`; `usual` is the divergence at the usual one.
    fn zero_fraction(&mut self, rule: AllocationRule, limit: f64, usual: f64) -> anyhow::Result<f64> {
        let [mut low, mut high] = ZERO_FRACTIONS;
        if usual <= limit {
            low = USUAL_ZERO_FRACTION;
        } else {
            high = USUAL_ZERO_FRACTION;
        }
        let mut reached = (usual <= limit).then_some(low);
        let mut least = f64::INFINITY;
        for _ in 0..ZERO_FRACTION_STEPS {
            let middle = 0.5 * (low + high);
            let kl = self.measure(&self.profile(rule, middle, None)?)?.total.kl;
            least = least.min(kl);
            if kl <= limit {
                (low, reached) = (middle, Some(middle));
            } else {
                high = middle;
            }
        }
        reached.ok_or_else(|| {
            anyhow::anyhow!(
                "--max-kl: expected a divergence that thresholds can keep, got one whose share for them is {limit:.6}: \
                 at a zero fraction of {low:.2} it is {least:.6}"
            )
        })
    }

    /// The largest slack whose divergence stays within `limit`, if any does.
    fn slack(
        &mut self,
        rule: AllocationRule,
        zero_fraction: f64,
        limit: f64,
    ) -> anyhow::Result<Option<(f32, Measured)>> {
        let [mut low, mut high] = SLACKS;
        let mut best = None;
        for _ in 0..SLACK_STEPS {
            let middle = four_digits(0.5 * (low + high));
            let measured = self.measure(&self.profile(rule, zero_fraction, Some(middle))?)?;
            if measured.total.kl <= limit {
                (low, best) = (middle, Some((middle, measured)));
            } else {
                high = middle;
            }
        }
        Ok(best)
    }
}

/// Four significant digits say all that a measured threshold can.
fn four_digits(x: f32) -> f32 {
    format!("{x:.3e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use deltallm::core::HeadSparsity;

    use super::*;

    #[test]
    fn a_layer_without_zeros_and_skipping_gains_too_little() {
        let layer = |nonzeros, skipped_values| {
            let head = HeadSparsity { elements: 100, nonzeros, pairs: 100, exact_pairs: 20, skipped_values };
            gain(&SparsityStats::new(vec![head; 2]))
        };
        assert_eq!(layer(100, 0), 0.0);
        assert!((layer(0, 80) - 0.8).abs() < 1e-12, "everything far is saved");
        assert_eq!(layer(80, 0), 0.0, "a sparse product that is slower than the dense one");
        assert!(layer(50, 0) < LEAST_GAIN && layer(40, 0) > LEAST_GAIN);
        assert!(layer(100, 10) < LEAST_GAIN && layer(100, 30) > LEAST_GAIN);
    }

    #[test]
    fn only_layers_that_skip_are_quantised() {
        let layer = |skipped_values| {
            let head =
                HeadSparsity { elements: 100, nonzeros: 40, pairs: 100, exact_pairs: 0, skipped_values };
            SparsityStats::new(vec![head])
        };
        assert_eq!(layer_store(KvStore::Compact, &layer(80)), Some(KvStore::Compact));
        assert_eq!(layer_store(KvStore::Compact, &layer(10)), Some(KvStore::F16));
        assert_eq!(layer_store(KvStore::F16, &layer(10)), None);
    }

    #[test]
    fn four_digits_are_kept() {
        assert_eq!([0.123_456, 1234.56, 0.0].map(four_digits), [0.123_5, 1235.0, 0.0]);
    }
}
