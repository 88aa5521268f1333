//! What zeros cost, for three rules that say which entries become zero.

use std::sync::Arc;

use deltallm::calibration::RateCurves;
use deltallm::{
    AttentionError, AttentionKernel, DenseAttention, ExactWindow, HybridAttention, HybridConfig, PaperRule,
    ThresholdPolicy, ThresholdProfile,
};
use serde::Serialize;

use super::subject::{Captured, Cost, Subject};
use crate::HeldOutText;
use crate::drawing::{Axis, Dash, Marker, PICTURE_SIZE, Panel, SeriesStyle, legend, palette, png};

/// Zero fractions that every rule is brought to.
const ZERO_FRACTIONS: [f64; 5] = [0.35, 0.45, 0.55, 0.65, 0.75];
/// Halvings of the interval in which a factor is sought, and its ends as powers of two.
const HALVINGS: usize = 20;
const EXPONENTS: [f32; 2] = [-7.0, 5.0];

const STYLES: [SeriesStyle; 3] = [
    SeriesStyle { colour: palette::VERMILION, marker: Marker::Square, dash: Some(Dash::Dotted) },
    SeriesStyle { colour: palette::BLUE, marker: Marker::Triangle, dash: Some(Dash::Dashed) },
    SeriesStyle { colour: palette::GREEN, marker: Marker::Circle, dash: Some(Dash::Solid) },
];
const KERNEL: SeriesStyle = SeriesStyle { colour: palette::BLACK, marker: Marker::Star, dash: None };

/// Accuracy against zero fraction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// Perplexity of dense attention.
    pub perplexity_dense: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// The rules without value skipping; the calibrated one is absent without a profile.
    pub rules: Vec<RuleCosts>,
    /// The kernel as it is, with value skipping if it skips.
    pub kernel: Cost,
}

/// One rule at several zero fractions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuleCosts {
    /// What the rule is.
    pub rule: String,
    /// In the order of rising zero fraction.
    pub points: Vec<RuleCost>,
}

/// A rule with one factor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RuleCost {
    /// The one threshold, or what the calibrated thresholds are multiplied by.
    pub factor: f32,
    /// What it costs.
    #[serde(flatten)]
    pub cost: Cost,
}

/// Thresholds that grow together, with the keys that stay exact.
struct Rule {
    name: String,
    thresholds: Arc<ThresholdProfile>,
    /// Layer by layer; none runs dense.
    layers: Vec<Option<HybridConfig>>,
}

impl Rule {
    fn all(subject: &Subject) -> anyhow::Result<Vec<Self>> {
        let config = subject.graph().config();
        let shape = [config.layers, config.kv_heads, config.head_dim];
        let ones = vec![1.0; shape.iter().product()];
        let ones = Arc::new(ThresholdProfile::new(config.fingerprint(), shape, ones)?);
        let uniform = |name, layers| Self { name, thresholds: Arc::clone(&ones), layers };
        let paper = PaperRule::default();
        let name = format!("paper: one θ, blocks of {:.0} %, no sinks", 100.0 * paper.scale);
        let mut rules = vec![uniform(name, vec![Some(paper.into()); config.layers])];
        let layers: Vec<_> = (0..config.layers).map(|layer| subject.kernel.hybrid_config(layer)).collect();
        let sliding =
            layers.iter().flatten().find(|config| matches!(config.exact_window, ExactWindow::Sliding(_)));
        let base = sliding.cloned().unwrap_or_else(|| HybridConfig::new(ThresholdPolicy::Uniform(1.0)));
        let name = format!("one θ, window {}, {} sinks", base.exact_window, base.exact_sinks);
        // In the same layers as the calibrated thresholds, so that these do not gain by what they leave exact.
        let coded = layers.iter().map(|layer| layer.as_ref().map(|_| base.clone()));
        rules.push(uniform(name, coded.collect()));
        if let Some(profile) = subject.kernel.profile() {
            let thresholds = Arc::clone(profile.settings.thresholds());
            rules.push(Self { name: "calibrated thresholds, scaled".into(), thresholds, layers });
        }
        Ok(rules)
    }

    fn scaled(&self, factor: f32) -> anyhow::Result<ThresholdPolicy> {
        let thresholds = self.thresholds.thresholds().iter().map(|threshold| threshold * factor).collect();
        let profile = ThresholdProfile::new(self.thresholds.model(), self.thresholds.shape(), thresholds)?;
        Ok(ThresholdPolicy::Profile(Arc::new(profile)))
    }

    fn kernel(
        &self,
        subject: &Subject,
        thresholds: &ThresholdPolicy,
        layer: usize,
    ) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        let (shape, options) = (subject.graph().attention_shape(), subject.kernel.options(layer));
        let Some(base) = &self.layers[layer] else {
            return Ok(Box::new(DenseAttention::new(shape, options)?));
        };
        let thresholds = thresholds.clone();
        let config = base.clone().thresholds(thresholds).layer(layer).skip_margin(None);
        // A rule may code keys where the profile has dense attention.
        let store = subject.kernel.spec().layer(layer).store.unwrap_or(options.store);
        Ok(Box::new(HybridAttention::new(shape, config.options(options.store(store)))?))
    }

    /// The zero fraction of keys with these rates, layer by layer.
    fn zero_fraction(&self, rates: &[RateCurves], factor: f32) -> f64 {
        let [_, kv_heads, head_dim] = self.thresholds.shape();
        let rows = self.thresholds.thresholds().chunks(kv_heads * head_dim);
        let (mut sent, mut all) = (0.0, 0.0);
        for ((curves, row), _) in
            rates.iter().zip(rows).zip(&self.layers).filter(|(_, layer)| layer.is_some())
        {
            all += (curves.tokens() * row.len()) as f64;
            let channels = row.iter().enumerate();
            sent += channels.map(|(channel, theta)| curves.sent(channel, theta * factor)).sum::<f64>();
        }
        1.0 - sent / all
    }

    /// The factor with which keys of these rates have this zero fraction, to three digits.
    fn factor(&self, rates: &[RateCurves], zero_fraction: f64) -> f32 {
        let [mut low, mut high] = EXPONENTS;
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            match self.zero_fraction(rates, middle.exp2()) < zero_fraction {
                true => low = middle,
                false => high = middle,
            }
        }
        let factor = low.exp2();
        format!("{factor:.2e}").parse().unwrap_or(factor)
    }
}

impl Accuracy {
    /// Runs over the measured text that [`measure`](Self::measure) makes.
    pub(super) fn runs(subject: &Subject) -> usize {
        ZERO_FRACTIONS.len() * (2 + usize::from(subject.kernel.profile().is_some()))
    }

    /// `kernel` is what the kernel as it is costs.
    pub(super) fn measure(
        subject: &Subject,
        captured: &Captured,
        dense: &HeldOutText,
        kernel: Cost,
        step: &mut dyn FnMut(),
    ) -> anyhow::Result<Self> {
        let rates = (captured.0.iter())
            .map(|[_, k, _]| {
                let mut curves = RateCurves::new();
                curves.add(k.view()).map(|()| curves)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut rules = Vec::new();
        for rule in Rule::all(subject)? {
            let mut points = Vec::new();
            for zero_fraction in ZERO_FRACTIONS {
                let factor = rule.factor(&rates, zero_fraction);
                let thresholds = rule.scaled(factor)?;
                let measured = subject.measure(dense, &|layer| rule.kernel(subject, &thresholds, layer))?;
                points.push(RuleCost { factor, cost: Cost::new(&measured) });
                step();
            }
            rules.push(RuleCosts { rule: rule.name, points });
        }
        let tokens = subject.windows * (subject.context - 1);
        Ok(Self { perplexity_dense: dense.perplexity(), tokens, rules, kernel })
    }

    pub(super) fn summary(&self) -> String {
        let rule = |rule: &RuleCosts| {
            let [first, .., last] = &rule.points[..] else { return rule.rule.clone() };
            format!(
                "{} KL {:.4} to {:.4} nats at {:.0} to {:.0} % zeros",
                rule.rule,
                first.cost.kl,
                last.cost.kl,
                100.0 * first.cost.zero_fraction,
                100.0 * last.cost.zero_fraction
            )
        };
        self.rules.iter().map(rule).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn draw(&self, subject: &Subject) -> anyhow::Result<Vec<u8>> {
        let skipped = match self.kernel.values_skipped {
            0.0 => String::new(),
            share => format!(", {:.0} % of far values skipped", 100.0 * share),
        };
        let mut entries: Vec<_> =
            STYLES.into_iter().zip(self.rules.iter().map(|rule| rule.rule.clone())).collect();
        entries.push((KERNEL, format!("the kernel as it is{skipped}")));
        let points = || self.rules.iter().flat_map(|rule| rule.points.iter().map(|point| point.cost));
        let costs: Vec<Cost> = points().chain([self.kernel]).collect();
        let x = || Axis::linear("zero fraction, %", costs.iter().map(|cost| 100.0 * cost.zero_fraction));
        let changes = costs.iter().map(Cost::perplexity_percent);
        let changes = changes.flat_map(|(change, error)| [change - error, change + error, 0.0]);

        png(|canvas| {
            canvas.headline("Accuracy against sparsity of the keys")?;
            let bottom =
                canvas.caption(&subject.caption(&format!("{}; bars: standard error", subject.sample())))?;
            let top = legend(canvas, 76.0, &entries)? + 16.0;
            let width = f64::from(PICTURE_SIZE[0]);
            let kl = Axis::log("KL to dense attention, nats", costs.iter().map(|cost| cost.kl));
            let left = Panel::new(canvas, [(16.0, top), (width / 2.0 - 16.0, bottom)], x(), kl)?;
            let perplexity = Axis::linear("change of perplexity, %", changes);
            let right =
                Panel::new(canvas, [(width / 2.0 + 8.0, top), (width - 16.0, bottom)], x(), perplexity)?;
            right.level(0.0)?;
            let draw = |costs: &[Cost], style: SeriesStyle| {
                let (mut kl, mut perplexity) = (Vec::new(), Vec::new());
                for cost in costs {
                    let (zeros, (change, error)) = (100.0 * cost.zero_fraction, cost.perplexity_percent());
                    kl.push([zeros, cost.kl]);
                    perplexity.push([zeros, change]);
                    right.error_bar(zeros, [change - error, change + error], style.colour)?;
                }
                left.series(&kl, style)?;
                right.series(&perplexity, style)
            };
            for (rule, style) in self.rules.iter().zip(STYLES) {
                draw(&rule.points.iter().map(|point| point.cost).collect::<Vec<_>>(), style)?;
            }
            draw(&[self.kernel], KERNEL)
        })
    }
}
