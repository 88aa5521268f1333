//! Attention settings that fit a model, and the kernels they stand for.

use std::fmt;

use deltallm::attn::Provenance;
use deltallm::core::BLOCK_TOKENS;
use deltallm::models::ModelConfig;
use deltallm::{
    AttentionError, AttentionKernel, AttentionOptions, DenseAttention, ExactWindow, HybridConfig,
    KernelContext, KernelKind, KernelSpec, KeyPlan, KvStore, MemoryBudget, Precision, SpecOverrides,
    ThresholdPolicy,
};
use serde::Serialize;

use super::phases::Phases;
use super::prefill_only::PrefillOnly;
use super::timed::{AttentionTime, Timed};
use crate::{ModelProfile, dense_f16_bytes, describe_margins, layer_plan};

/// Values per key and kv head that the compact store's codes do not hold: about what SmolLM2-135M has on WikiText-2 with its
/// profile before that of 30 November 2026.
const ESCAPES: f64 = 0.004;

/// The share of its transmitted codes that change by more than 4 bits hold, of the same.
const WIDE: f64 = 0.06;

/// Settings that fit the model: makes its kernels.
#[derive(Debug, Clone)]
pub struct KernelChoice {
    spec: KernelSpec,
    context: KernelContext,
    profile: Option<ModelProfile>,
    /// What the caller asked for, for all layers.
    exact_prompt: Option<usize>,
    phases: Phases,
}

impl KernelChoice {
    /// `spec` is what follows from `profile` and the caller, who asked for `exact_prompt`.
    pub(crate) fn new(
        spec: KernelSpec,
        context: KernelContext,
        profile: Option<ModelProfile>,
        exact_prompt: Option<usize>,
        phases: Phases,
    ) -> Self {
        Self { spec, context, profile, exact_prompt, phases }
    }

    /// The kernel of one layer, with an empty cache.
    ///
    /// # Errors
    /// As [`KernelSpec::build`].
    pub fn make(&self, layer: usize) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        let kernel = self.spec.build(layer, &self.context)?;
        let exact = match self.spec.kernel {
            KernelKind::Dense => true,
            KernelKind::Delta => false,
            KernelKind::Hybrid => self.hybrid_config(layer).is_none(),
        };
        Ok(match self.phases {
            Phases::Prefill if !exact => {
                let options = self.options(layer);
                let store = options.store.dense();
                let dense = DenseAttention::new(self.context.shape, options.store(store))?;
                Box::new(PrefillOnly::new(dense, kernel))
            }
            _ => kernel,
        })
    }

    /// The same, with the time that its calls take added to `time`.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn make_timed(
        &self,
        layer: usize,
        time: &AttentionTime,
    ) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        Ok(Box::new(Timed::new(self.make(layer)?, time.clone())))
    }

    /// The settings of all layers.
    pub fn spec(&self) -> &KernelSpec {
        &self.spec
    }

    /// What the kernel of a layer is given.
    pub fn options(&self, layer: usize) -> AttentionOptions {
        self.spec.options(layer, &self.context)
    }

    /// The settings of a layer's hybrid kernel, unless its profile or its mask wants it dense.
    pub fn hybrid_config(&self, layer: usize) -> Option<HybridConfig> {
        self.spec.hybrid_config(layer, &self.context)
    }

    /// Whether prompts of `a` and `b` tokens that begin alike are [attended alike](HybridConfig::reads_alike) as far as that goes, in all
    /// layers.
    pub fn reads_alike(&self, a: usize, b: usize) -> bool {
        self.spec.reads_alike(&self.context, a, b)
    }

    /// The profile that the settings come from.
    pub fn profile(&self) -> Option<&ModelProfile> {
        self.profile.as_ref()
    }

    /// Up to how many tokens it is known what the profile costs; `None` where it does not say, or is not used.
    pub fn verified_tokens(&self) -> Option<usize> {
        let profile = self.profile.as_ref().filter(|_| self.kind() != KernelKind::Dense)?;
        profile.settings.provenance().map(Provenance::longest)
    }

    /// Whether a text of so many tokens is longer than those for which it is known what the profile costs.
    pub fn is_beyond_profile(&self, tokens: usize) -> bool {
        self.verified_tokens().is_some_and(|most| tokens > most)
    }

    /// Says so.
    pub fn warning_beyond_profile(&self, tokens: usize) -> Option<String> {
        let (most, profile) = self.verified_tokens().zip(self.profile.as_ref())?;
        (tokens > most).then(|| {
            format!(
                "warning      the profile {} has been measured on texts of up to {most} tokens; at {tokens} it may cost more than it says: \
                 `calibrate --context {tokens}` makes one for such",
                profile.name
            )
        })
    }

    /// The same with another store (in layers for which a profile has none of its own).
    #[must_use]
    pub fn with_store(&self, store: KvStore) -> Self {
        Self { spec: self.spec.clone().store(store), ..self.clone() }
    }

    /// The same with every prompt approximate, unless the caller said up to what length they are to be exact.
    #[must_use]
    pub fn with_all_prompts(self) -> Self {
        let exact_prompt = self.exact_prompt.or(Some(0));
        let spec = self.spec.with(&SpecOverrides::default().exact_prompt(exact_prompt));
        Self { spec, exact_prompt, ..self }
    }

    /// Exact attention in f32 with the same cache type, f16 for stores that quantise: what the choice is compared with.
    #[must_use]
    pub fn dense(&self) -> Self {
        let spec = self.spec.clone().kernel(KernelKind::Dense).store(self.spec.store.exact().into());
        let spec = spec.precision(Precision::F32).layers(Vec::new());
        Self { spec, profile: None, ..self.clone() }
    }

    /// The same with this kernel's products, to be timed beside it: 16-bit ones make exact attention faster, too.
    pub fn dense_alike(&self) -> Self {
        let dense = self.dense();
        Self { spec: dense.spec.precision(self.spec.precision), ..dense }
    }

    /// Checks that there is something to compare with [`dense`](Self::dense).
    ///
    /// # Errors
    /// When it is the same.
    pub fn check_comparable(&self) -> anyhow::Result<()> {
        let parts = |spec: &KernelSpec| (spec.kernel, spec.store, spec.precision);
        anyhow::ensure!(
            parts(&self.spec) != parts(&self.dense().spec),
            "--compare dense: expected another kernel, or dense attention with another --kv or --precision, got the same, {self}; \
             leave --compare out"
        );
        Ok(())
    }

    /// Which kernel.
    pub fn kind(&self) -> KernelKind {
        self.spec.kernel
    }

    /// The same with caches that are charged to `budget`.
    #[must_use]
    pub fn with_budget(&self, budget: MemoryBudget) -> Self {
        Self { context: self.context.clone().budget(budget), ..self.clone() }
    }

    /// The same settings for another kernel and store.
    #[must_use]
    pub fn with_kernel(&self, kernel: KernelKind, store: KvStore) -> Self {
        let given = SpecOverrides::default().kernel(kernel).store(store);
        Self { spec: self.spec.clone().with(&given), ..self.clone() }
    }

    /// When attention is approximate.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// How keys and values are cached.
    pub fn store(&self) -> KvStore {
        self.spec.store
    }

    /// Share of zero deltas that plans count on: what the profile measured or the target asks for, else about that of
    /// SmolLM2-135M on WikiText-2 with theta 0.6.
    pub fn expected_zero_fraction(&self) -> f64 {
        let measured =
            || self.profile.as_ref()?.settings.provenance().map(|made| made.held_out.zero_fraction);
        match &self.spec.thresholds {
            ThresholdPolicy::TargetSparsity(target) => f64::from(target.zero_fraction()),
            ThresholdPolicy::Profile(_) => measured().unwrap_or(0.45),
            _ => 0.45,
        }
    }

    /// How keys are stored, for plans; a block window counts as that of a prompt of `context` tokens.
    pub fn key_plan(&self, zero_fraction: f64, context: usize) -> KeyPlan {
        let (window, sinks) = match (self.kind(), self.spec.exact_window) {
            (KernelKind::Dense, _) => return KeyPlan::Dense,
            (KernelKind::Hybrid, ExactWindow::Sliding(keys)) => (keys, self.spec.exact_sinks),
            (KernelKind::Hybrid, ExactWindow::Block { scale }) => {
                ((f64::from(scale) * context as f64).ceil() as usize, self.spec.exact_sinks)
            }
            _ => (0, 0),
        };
        KeyPlan::Delta { zero_fraction, wide: WIDE, escapes: ESCAPES, window, sinks }
    }

    /// Bytes of the caches of all layers that hold `tokens` tokens, before they exist.
    pub fn planned_bytes(&self, config: &ModelConfig, tokens: usize) -> usize {
        self.planned_bytes_at(self.expected_zero_fraction(), config, tokens)
    }

    /// The same with such a share of zero deltas. In `--phases prefill` a layer that is coded keeps a dense cache too.
    pub fn planned_bytes_at(&self, zero_fraction: f64, config: &ModelConfig, tokens: usize) -> usize {
        let coded = self.key_plan(zero_fraction, config.context_length);
        let layer = |layer: usize| {
            let store = self.options(layer).store;
            let bytes = |store, keys| layer_plan(config, layer, store, keys).footprint(tokens).total();
            let dense = self.kind() == KernelKind::Hybrid && self.hybrid_config(layer).is_none();
            match (dense, coded, self.phases) {
                (true, ..) => bytes(store, KeyPlan::Dense),
                (false, KeyPlan::Delta { .. }, Phases::Prefill) => {
                    bytes(store, coded).saturating_add(bytes(store.dense(), KeyPlan::Dense))
                }
                _ => bytes(store, coded),
            }
        };
        (0..config.layers).map(layer).fold(0, usize::saturating_add)
    }

    /// The length from which on these caches are planned smaller than dense ones in f16, up to the model's context; `None` if they are
    /// not. Shorter ones are in f16 as well, or larger where the exact window is held beside its coded keys.
    pub fn smaller_than_f16_from(&self, config: &ModelConfig) -> Option<usize> {
        let smaller = |tokens: usize| self.planned_bytes(config, tokens) < dense_f16_bytes(config, tokens);
        // Where the window and its pages are full, every further token takes the same.
        let filled = match self.key_plan(0.0, config.context_length) {
            KeyPlan::Delta { window, sinks, .. } => {
                window.saturating_add(sinks).saturating_add(8 * BLOCK_TOKENS)
            }
            _ => BLOCK_TOKENS,
        };
        let attended = (0..config.layers).filter_map(|layer| config.mask(layer).most_keys()).max();
        let filled = filled.max(attended.unwrap_or(0).saturating_add(2 * BLOCK_TOKENS));
        let (context, filled) = (config.context_length, filled.min(config.context_length));
        if !(smaller(context) && smaller(filled)) {
            return None;
        }
        Some((1..=filled).rev().find(|tokens| !smaller(*tokens)).map_or(1, |tokens| tokens + 1))
    }

    /// The settings for a report; those that the kernel does not use are absent.
    pub fn settings(&self) -> KernelSettings {
        let (coded, hybrid) = (self.kind() != KernelKind::Dense, self.kind() == KernelKind::Hybrid);
        let (mut theta, mut target_sparsity) = (None, None);
        match &self.spec.thresholds {
            ThresholdPolicy::Uniform(x) => theta = Some(*x),
            ThresholdPolicy::TargetSparsity(target) => target_sparsity = Some(target.zero_fraction()),
            _ => {}
        }
        let layers = self.spec.layers.len().max(self.context.masks.len()).max(1);
        let coded_layers = (0..layers).filter(|layer| self.hybrid_config(*layer).is_some());
        let dense_layers = layers - coded_layers.clone().count();
        let margins = describe_margins(coded_layers.filter_map(|layer| self.spec.layer(layer).skip_margin));
        KernelSettings {
            theta: theta.filter(|_| coded),
            target_sparsity: target_sparsity.filter(|_| coded),
            profile: self.profile.as_ref().filter(|_| coded).map(|profile| profile.name.clone()),
            profile_tokens: self.verified_tokens(),
            window: hybrid.then(|| self.spec.exact_window.to_string()),
            sinks: hybrid.then_some(self.spec.exact_sinks),
            skip_margin: margins.filter(|_| hybrid),
            exact_prompt: self.exact_prompt.filter(|_| hybrid),
            dense_layers: Some(dense_layers).filter(|layers| hybrid && *layers > 0),
            phases: coded.then_some(self.phases),
            kv: self.spec.store,
            precision: Some(self.spec.precision)
                .filter(|precision| *precision != Precision::F32)
                .map(|precision| precision.to_string()),
            simd: self.context.isa.to_string(),
        }
    }
}

/// `hybrid: theta 0.6, window 64, 4 sinks, cache f16, avx2`
impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings();
        let parts = [
            settings.theta.map(|theta| format!("theta {theta}, ")),
            settings.target_sparsity.map(|share| format!("target {share} zeros, ")),
            settings.profile.map(|profile| format!("profile {profile}, ")),
            settings.window.map(|window| format!("window {window}, ")),
            settings.sinks.map(|sinks| format!("{sinks} sinks, ")),
            settings.skip_margin.map(|margin| format!("skip margin {margin}, ")),
            settings
                .dense_layers
                .map(|layers| format!("{layers} dense layer{}, ", if layers == 1 { "" } else { "s" })),
            settings
                .phases
                .filter(|phases| *phases == Phases::Prefill)
                .map(|_| "in prefill only, ".to_owned()),
            settings.precision.map(|precision| format!("{precision} products, ")),
        ];
        write!(f, "{}: {}", self.kind(), parts.into_iter().flatten().collect::<String>())?;
        write!(f, "cache {}, {}", settings.kv, settings.simd)
    }
}

/// Attention settings as they appear in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelSettings {
    /// One threshold for all.
    pub theta: Option<f32>,
    /// Zero fraction that the thresholds are led to.
    pub target_sparsity: Option<f32>,
    /// File of calibrated settings, or the name of a built-in one.
    pub profile: Option<String>,
    /// The longest text for which it is known what the profile costs.
    pub profile_tokens: Option<usize>,
    /// As on the command line.
    pub window: Option<String>,
    /// First keys, always exact.
    pub sinks: Option<usize>,
    /// As on the command line, or the range over the layers; absent when values are not skipped.
    pub skip_margin: Option<String>,
    /// As on the command line: prompts of up to so many tokens are exact; absent where a profile decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_prompt: Option<usize>,
    /// Layers that are dense all the same, by the profile or because their queries attend to few keys; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dense_layers: Option<usize>,
    /// When attention is approximate.
    pub phases: Option<Phases>,
    /// How keys and values are cached.
    pub kv: KvStore,
    /// Numbers that a prompt's products are made of, if not f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Instruction set.
    pub simd: String,
}

#[cfg(test)]
mod tests {
    use deltallm::{AttentionShape, Mask};

    use super::*;

    #[test]
    fn layers_that_are_dense_by_their_mask_are_told_from_the_others() {
        let spec = KernelSpec::default().exact_prompt(700);
        let context = KernelContext::new(AttentionShape::new(2, 1, 8).unwrap())
            .masks(vec![Mask::SlidingWindow(512), Mask::Causal]);
        let choice = KernelChoice::new(spec, context, None, None, Phases::Both);
        assert!(choice.hybrid_config(0).is_none() && choice.hybrid_config(1).is_some());
        assert!(choice.to_string().contains("1 dense layer,"), "{choice}");
        assert!(!choice.reads_alike(600, 800), "the second layer attends to one of them exactly");
        assert!(choice.reads_alike(800, 900));
        assert!(choice.with_kernel(KernelKind::Dense, KvStore::F16).reads_alike(600, 800));
    }
}
