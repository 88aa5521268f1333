//! From a text and a model to attention settings: measure, allocate, search, measure again.

use std::sync::Arc;

use deltallm::attn::calibration::{Allocation, RateCurves, Sensitivity};
use deltallm::attn::{CalibrationGoal, HeldOut};
use deltallm::models::{LogitRows, Model};
use deltallm::{
    AttentionError, AttentionOptions, AttentionProfile, DenseAttention, HybridAttention, HybridConfig,
    KernelContext, KernelSpec, KvStore, LayerSpec, ModelFingerprint, SkipMargin, SparsityStats,
    ThresholdPolicy, ThresholdProfile, Window,
};

use super::skip_margins::{PROBES, SkipCost, at_context, four_digits};
use crate::{HeldOutText, Measured};

/// Every so many queries of the calibration text one is looked at: neighbours say much the same.
const QUERY_STRIDE: usize = 2;
/// Zero fractions among which the one for a divergence is sought, the one that is tried first, and the steps after it.
const ZERO_FRACTIONS: [f64; 2] = [0.05, 0.95];
const USUAL_ZERO_FRACTION: f64 = 0.63;
const ZERO_FRACTION_STEPS: usize = 6;
/// Skipping may bring the divergence to this multiple of what the thresholds alone cause: it may cost as much as they do.
const SKIP_SHARE: f64 = 2.0;
/// Slacks of the margin `ln(n) - slack` among which one is sought, and the steps of that search.
const SLACKS: [f32; 2] = [-1.0, 5.0];
const SLACK_STEPS: usize = 5;
/// Steps of the search for the rate at which all layers skip, where each has its margin.
const RATE_STEPS: usize = 6;
/// A layer that never saves more than this share of the time of attention runs dense.
const LEAST_GAIN: f64 = 0.1;
/// Prompts of up to this many tokens are attended exactly where values are not skipped.
const EXACT_PROMPT: usize = 512;
/// Time of a prompt with a window of 64 over that of dense attention, where a share `s` of far values is skipped:
/// `1 + OVERHEAD - SKIPPING s (1 - REACH / tokens)`. Fitted to the layers of SmolLM2-135M (`docs/results/attention.md`): coding and
/// the first pass are paid for every key, and next to the window there is less to skip.
const OVERHEAD: f64 = 0.33;
const SKIPPING: f64 = 1.15;
const REACH: f64 = 450.0;
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
    /// Margins of value skipping to look for.
    pub skip: SkipSearch,
    /// Prompts of up to this many tokens are to be exact in every layer, rather than for as long as each gains nothing.
    pub exact_prompt: Option<usize>,
}

/// What margins of value skipping are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipSearch {
    /// None: nothing is skipped.
    Off,
    /// One for all layers.
    One,
    /// One for each layer, by what skipping costs there: two runs more for every layer.
    Layers,
}

/// The sensitivities and rates of all layers on the calibration text.
pub struct Measurements(Allocation);

/// The settings found, and how.
pub struct Calibration {
    /// The settings, without their provenance.
    pub profile: AttentionProfile,
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
                let mut output = layer.attention_output.weight.to_dense();
                if let Some(norm) = &layer.attention_sub_norm {
                    // Its weights; by how much it stretches a token is left out.
                    output = (output.into_owned() * norm).into();
                }
                let sensitivity = Sensitivity::new(options, exact, output.view(), QUERY_STRIDE)?;
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
    /// Runs that [`find`](Self::find) makes at most for a model of so many layers.
    pub fn runs(request: &Request, layers: usize) -> usize {
        let search = if matches!(request.goal, CalibrationGoal::Kl(_)) { 1 + ZERO_FRACTION_STEPS } else { 0 };
        let margins = match request.skip {
            SkipSearch::Off => 0,
            SkipSearch::One => SLACK_STEPS,
            SkipSearch::Layers => PROBES.len() * layers + RATE_STEPS,
        };
        search + 2 + margins
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
        let zero_fraction = match request.goal {
            CalibrationGoal::ZeroFraction(share) => share,
            CalibrationGoal::Kl(limit) if request.skip != SkipSearch::Off => {
                search.zero_fraction(limit / SKIP_SHARE)?
            }
            CalibrationGoal::Kl(limit) => search.zero_fraction(limit)?,
        };
        let mut profile = search.profile(zero_fraction)?;
        let mut measured = search.measure(&profile)?;
        let without_skipping = measured.total;
        if request.skip != SkipSearch::Off {
            let limit = match request.goal {
                CalibrationGoal::ZeroFraction(_) => without_skipping.kl * SKIP_SHARE,
                CalibrationGoal::Kl(limit) => limit,
            };
            let found = match request.skip {
                SkipSearch::Layers => search.layer_margins(&profile, limit)?,
                _ => search.margin(&profile, limit)?,
            };
            (profile, measured) = found.unwrap_or((profile, measured));
        }
        let pays: Vec<Option<usize>> =
            measured.layers.iter().map(|stats| pays_from(stats, &profile)).collect();
        let plans =
            (profile.spec().layers.iter().zip(&measured.layers).zip(&pays)).map(|((plan, stats), pays)| {
                LayerSpec { dense: pays.is_none(), store: layer_store(options.store, stats), ..*plan }
            });
        let plans: Vec<LayerSpec> = plans.collect();
        if plans != profile.spec().layers {
            profile = with_plans(&profile, plans)?;
            measured = search.measure(&profile)?;
        }
        // Short prompts will cost nothing; what has been measured is what long ones cost.
        let plans = profile.spec().layers.iter().zip(&pays).map(|(plan, pays)| LayerSpec {
            exact_prompt: Some(request.exact_prompt.or(*pays).unwrap_or_default()),
            ..*plan
        });
        let profile = with_plans(&profile, plans.collect())?;
        let zero_fraction = search.allocation.zero_fraction(&rows(&profile));
        Ok(Self { profile, zero_fraction, without_skipping, held_out: measured })
    }
}

/// From prompts of how many tokens on a layer gains time; `None` if it never gains enough.
fn pays_from(stats: &SparsityStats, profile: &AttentionProfile) -> Option<usize> {
    let total = stats.total();
    if profile.spec().layers.iter().all(|plan| plan.skip_margin.is_none()) {
        // Scores are half of the time of attention.
        let far = 0.5 * (1.0 - total.exact_share());
        let gain = far * (1.0 - SPARSE_COST * (1.0 - total.zero_fraction()));
        return (gain >= LEAST_GAIN).then_some(EXACT_PROMPT);
    }
    let gain = SKIPPING * total.values_skipped();
    let tokens = (REACH / (1.0 - OVERHEAD / gain)).ceil() as usize;
    (gain - OVERHEAD >= LEAST_GAIN).then_some(tokens.next_multiple_of(64))
}

/// The profile with other plans for its layers.
fn with_plans(
    profile: &AttentionProfile,
    layers: Vec<LayerSpec>,
) -> Result<AttentionProfile, AttentionError> {
    AttentionProfile::new(profile.thresholds().clone(), KernelSpec { layers, ..profile.spec().clone() })
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
    /// Thresholds for all layers, which skip nothing.
    fn profile(&self, zero_fraction: f64) -> anyhow::Result<AttentionProfile> {
        let config = self.model.config();
        let shape = [config.layers, config.kv_heads, config.head_dim];
        let thresholds = self.allocation.thresholds(zero_fraction).concat();
        let thresholds = thresholds.into_iter().map(four_digits).collect();
        let thresholds = ThresholdProfile::new(ModelFingerprint(config.fingerprint()), shape, thresholds)?;
        let spec = KernelSpec {
            window: Window::Sliding(self.request.window),
            sinks: self.request.sinks,
            layers: vec![LayerSpec::default(); config.layers],
            ..KernelSpec::default()
        };
        Ok(AttentionProfile::new(Arc::new(thresholds), spec)?)
    }

    fn measure(&mut self, profile: &AttentionProfile) -> anyhow::Result<Measured> {
        let AttentionOptions { shape, isa, store, budget, parallel, .. } = self.options.clone();
        let (spec, context) =
            (KernelSpec { store, ..profile.spec().clone() }, KernelContext { shape, isa, budget, parallel });
        let measured = self.held_out.measure(self.model, &|layer| spec.build(layer, &context))?;
        (self.step)();
        Ok(measured)
    }

    /// The largest zero fraction whose divergence stays within `limit`.
    fn zero_fraction(&mut self, limit: f64) -> anyhow::Result<f64> {
        let [mut low, mut high] = ZERO_FRACTIONS;
        let (mut next, mut reached, mut least) = (USUAL_ZERO_FRACTION, None, f64::INFINITY);
        for _ in 0..=ZERO_FRACTION_STEPS {
            let kl = self.measure(&self.profile(next)?)?.total.kl;
            least = least.min(kl);
            if kl <= limit {
                (low, reached) = (next, Some(next));
            } else {
                high = next;
            }
            next = 0.5 * (low + high);
        }
        reached.ok_or_else(|| {
            anyhow::anyhow!(
                "--max-kl: expected a divergence that thresholds can keep, got one whose share for them is {limit:.6}: \
                 at a zero fraction of {low:.2} it is {least:.6}"
            )
        })
    }

    /// The profile with the largest slack whose divergence stays within `limit`, if any does.
    fn margin(
        &mut self,
        profile: &AttentionProfile,
        limit: f64,
    ) -> anyhow::Result<Option<(AttentionProfile, Measured)>> {
        self.largest(SLACKS.map(f64::from), SLACK_STEPS, limit, &|slack| {
            let margin = SkipMargin::length(four_digits(slack as f32));
            with_margins(profile, |_| margin)
        })
    }

    /// The profile with a margin for each layer, such that a further share of skipped values would cost the same in all: the
    /// highest such rate whose divergence stays within `limit`, if any does.
    fn layer_margins(
        &mut self,
        profile: &AttentionProfile,
        limit: f64,
    ) -> anyhow::Result<Option<(AttentionProfile, Measured)>> {
        let costs: Vec<SkipCost> =
            (0..profile.spec().layers.len()).map(|layer| self.skip_cost(layer)).collect::<Result<_, _>>()?;
        let ends =
            |end: usize| costs.iter().map(move |cost| cost.log_rates()[end]).filter(|rate| rate.is_finite());
        let rates = [ends(0).fold(f64::INFINITY, f64::min), ends(1).fold(f64::NEG_INFINITY, f64::max)];
        if rates[0] > rates[1] {
            return Ok(None); // there is nothing to skip in any layer
        }
        let context = self.held_out.context();
        self.largest(rates, RATE_STEPS, limit, &|rate| {
            with_margins(profile, |layer| at_context(costs[layer].margin(rate), context))
        })
    }

    /// What skipping costs in a layer that is exact but for that, while all others are exact.
    fn skip_cost(&mut self, layer: usize) -> anyhow::Result<SkipCost> {
        let exact = AttentionOptions { store: self.options.store.exact().into(), ..self.options.clone() };
        let mut cost = SkipCost { kl: [0.0; 2], skipped: [0.0; 2] };
        for (probe, nats) in PROBES.into_iter().enumerate() {
            let config = HybridConfig {
                window: Window::Sliding(self.request.window),
                sinks: self.request.sinks,
                skip_margin: Some(at_context(nats, self.held_out.context())),
                ..HybridConfig::new(ThresholdPolicy::Uniform(0.0))
            };
            let measured = self.held_out.measure(self.model, &|other| match other == layer {
                true => Ok(Box::new(HybridAttention::new(&exact, &config)?)),
                false => Ok(Box::new(DenseAttention::new(&exact)?)),
            })?;
            (self.step)();
            cost.kl[probe] = measured.total.kl;
            cost.skipped[probe] = measured.layers[layer].total().values_skipped();
        }
        Ok(cost)
    }

    /// Bisects for the largest of some settings whose divergence stays within `limit`, if any does; `make` makes the profile.
    fn largest(
        &mut self,
        [mut low, mut high]: [f64; 2],
        steps: usize,
        limit: f64,
        make: &dyn Fn(f64) -> Result<AttentionProfile, AttentionError>,
    ) -> anyhow::Result<Option<(AttentionProfile, Measured)>> {
        let mut best = None;
        for _ in 0..steps {
            let middle = 0.5 * (low + high);
            let profile = make(middle)?;
            let measured = self.measure(&profile)?;
            if measured.total.kl <= limit {
                (low, best) = (middle, Some((profile, measured)));
            } else {
                high = middle;
            }
        }
        Ok(best)
    }
}

/// The profile with a margin for every layer.
fn with_margins(
    profile: &AttentionProfile,
    margin: impl Fn(usize) -> SkipMargin,
) -> Result<AttentionProfile, AttentionError> {
    let plans = profile.spec().layers.iter().enumerate();
    let plans = plans.map(|(layer, plan)| LayerSpec { skip_margin: Some(margin(layer)), ..*plan });
    with_plans(profile, plans.collect())
}

#[cfg(test)]
mod tests {
    use deltallm::core::HeadSparsity;

    use super::*;

    fn profile(skip_margin: Option<SkipMargin>) -> AttentionProfile {
        let thresholds = ThresholdProfile::new(ModelFingerprint(1), [1, 1, 2], vec![1.0; 2]).unwrap();
        let layers = vec![LayerSpec { skip_margin, ..LayerSpec::default() }];
        AttentionProfile::new(Arc::new(thresholds), KernelSpec { layers, ..KernelSpec::default() }).unwrap()
    }

    #[test]
    fn without_skipping_zeros_must_pay() {
        let from = |nonzeros| {
            let counts =
                HeadSparsity { elements: 100, nonzeros, pairs: 100, exact_pairs: 20, skipped_values: 0 };
            pays_from(&SparsityStats::new(vec![counts; 2]), &profile(None))
        };
        assert_eq!(from(0), Some(EXACT_PROMPT));
        assert_eq!(from(80), None, "a sparse product that is slower than the dense one");
        assert!(from(50).is_none() && from(40).is_some());
    }

    #[test]
    fn the_more_is_skipped_the_shorter_the_prompts_that_gain() {
        let from = |skipped_values| {
            let counts =
                HeadSparsity { elements: 100, nonzeros: 40, pairs: 120, exact_pairs: 20, skipped_values };
            pays_from(&SparsityStats::new(vec![counts]), &profile(Some(SkipMargin::Fixed(4.0))))
        };
        assert_eq!([from(0), from(30)], [None, None]);
        assert_eq!([from(50), from(72), from(100)], [Some(1088), Some(768), Some(640)]);
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
}
