//! Attention settings of all layers of a model, and the kernels they stand for.

use std::sync::Arc;

use deltallm_core::{CoreError, KvStore, ThresholdPolicy, ThresholdProfile};

use super::{context::KernelContext, kind::KernelKind, layer::LayerSpec};
use crate::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, HybridAttention, HybridConfig, Mask, PaperRule, Precision, SkipMargin,
};

/// Attention settings of all layers of a model.
///
/// A profile, a command line, a benchmark and a configuration in C all end here, and every kernel is made by
/// [`build`](Self::build). What a caller says besides a profile is a [`SpecOverrides`](crate::SpecOverrides).
///
/// With the feature `serde` it reads and writes as JSON, with the names of the fields here; what is missing has its
/// [default](Self::default), but for the store, which is f32, `skip_margin`, which is none, and `dense_up_to`, which is 0. Unknown names
/// are errors.
///
/// ```
/// use deltallm_attn::{AttentionKernel, AttentionShape, KernelContext, KernelSpec, KvStore, LayerSpec, ExactWindow};
///
/// // Two layers, the first of them exact.
/// let spec = KernelSpec::default()
///     .store(KvStore::Compact)
///     .exact_window(ExactWindow::Sliding(128))
///     .layers(vec![LayerSpec::default().dense(true), LayerSpec::default()]);
/// let context = KernelContext::new(AttentionShape::new(4, 2, 8)?);
/// spec.validate(context.shape, 2)?;
/// let kernels: Vec<_> = (0..2).map(|layer| spec.build(layer, &context)).collect::<Result<_, _>>()?;
/// assert!(kernels.iter().all(|kernel| kernel.is_empty()));
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct KernelSpec {
    /// Which attention runs.
    pub kernel: KernelKind,
    /// How keys and values are cached.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_default"))]
    pub store: KvStore,
    /// Numbers that a prompt's products are made of.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub precision: Precision,
    /// Scores are `q . k * scale`; `None` is 1/sqrt(head_dim).
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub scale: Option<f32>,
    /// Scores become `cap * tanh(score / cap)`; `None` for most models.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_default"))]
    pub softcap: Option<f32>,
    /// Thresholds of the delta coding, for delta and hybrid attention.
    ///
    /// A profile that says one layer of one head, as the list `channels` in JSON is read, is cut into the layers and heads of the
    /// model: `layers * kv_heads * head_dim` thresholds.
    pub thresholds: ThresholdPolicy,
    /// Keys scored exactly in hybrid attention.
    #[cfg_attr(feature = "serde", serde(rename = "window"))]
    pub exact_window: ExactWindow,
    /// First keys of the sequence, always scored exactly in hybrid attention.
    #[cfg_attr(feature = "serde", serde(rename = "sinks"))]
    pub exact_sinks: usize,
    /// Hybrid attention skips a far value by this margin ([`HybridConfig::skip_margin`]); `None` skips nothing, and so does JSON that
    /// does not say.
    #[cfg_attr(feature = "serde", serde(default))]
    pub skip_margin: Option<SkipMargin>,
    /// Hybrid attention attends prompts of up to this many tokens exactly ([`HybridConfig::exact_prompt`]).
    pub exact_prompt: usize,
    /// Hybrid attention is dense in layers whose [mask](KernelContext::masks) lets a query attend to at most this many keys: coding and
    /// choosing among so few costs more than it saves (`docs/results/default.md`). Zero: in none, and so does JSON that does not say.
    /// Where others have [`KvStore::Compact`], these layers have [`KvStore::Int8`].
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "is_default"))]
    pub dense_up_to: usize,
    /// What single layers do otherwise: none, or one for each layer.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Vec::is_empty"))]
    pub layers: Vec<LayerSpec>,
}

#[cfg(feature = "serde")]
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for KernelSpec {
    /// Hybrid attention as [`HybridConfig::default`] has it, its cache in f16; dense in layers that attend to at most 512 keys.
    fn default() -> Self {
        Self { dense_up_to: 512, ..HybridConfig::default().into() }
    }
}

impl From<HybridConfig> for KernelSpec {
    /// The same in every layer. What a [`KernelContext`] says is left out, and so are the layer that the config is for and the length from
    /// which on it [holds codes](HybridConfig::codes_from).
    fn from(config: HybridConfig) -> Self {
        let HybridConfig {
            thresholds, exact_window, exact_prompt, exact_sinks, skip_margin, options, ..
        } = config;
        Self {
            kernel: KernelKind::Hybrid,
            store: options.store,
            precision: options.precision,
            scale: options.scale,
            softcap: options.softcap,
            thresholds,
            exact_window,
            exact_sinks,
            skip_margin,
            exact_prompt,
            dense_up_to: 0,
            layers: Vec::new(),
        }
    }
}

impl From<PaperRule> for KernelSpec {
    /// The same in every layer, and a cache in f16.
    fn from(rule: PaperRule) -> Self {
        HybridConfig::from(rule).into()
    }
}

impl KernelSpec {
    /// Sets [which attention runs](Self#structfield.kernel).
    #[must_use]
    pub fn kernel(self, kernel: KernelKind) -> Self {
        Self { kernel, ..self }
    }

    /// Sets how keys and values are cached; a layer with a store of its own keeps it.
    #[must_use]
    pub fn store(self, store: KvStore) -> Self {
        Self { store, ..self }
    }

    /// Sets the arithmetic of prompts.
    #[must_use]
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Sets the [`scale`](Self#structfield.scale) of scores: a number, or `None` for 1/sqrt(head_dim).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets the [`softcap`](Self#structfield.softcap) of scores: a number, or `None`.
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Sets the [thresholds](Self#structfield.thresholds) of the delta coding.
    #[must_use]
    pub fn thresholds(self, thresholds: ThresholdPolicy) -> Self {
        Self { thresholds, ..self }
    }

    /// Sets the keys that are scored exactly.
    #[must_use]
    pub fn exact_window(self, window: ExactWindow) -> Self {
        Self { exact_window: window, ..self }
    }

    /// Sets how many of the first keys are always scored exactly.
    #[must_use]
    pub fn exact_sinks(self, sinks: usize) -> Self {
        Self { exact_sinks: sinks, ..self }
    }

    /// Sets the margin of [value skipping](Self#structfield.skip_margin); `None` skips nothing.
    #[must_use]
    pub fn skip_margin(self, margin: impl Into<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin.into(), ..self }
    }

    /// Sets the length up to which prompts are attended [exactly](Self#structfield.exact_prompt).
    #[must_use]
    pub fn exact_prompt(self, tokens: usize) -> Self {
        Self { exact_prompt: tokens, ..self }
    }

    /// Sets up to how many keys a layer's queries may attend to for it to be [dense](Self#structfield.dense_up_to).
    #[must_use]
    pub fn dense_up_to(self, keys: usize) -> Self {
        Self { dense_up_to: keys, ..self }
    }

    /// Sets what single [layers](Self#structfield.layers) do otherwise.
    #[must_use]
    pub fn layers(self, layers: Vec<LayerSpec>) -> Self {
        Self { layers, ..self }
    }
}

impl KernelSpec {
    /// What a layer does, with everything filled in that it does like the others; its [mask](Self#structfield.dense_up_to) is not looked at.
    pub fn layer(&self, layer: usize) -> LayerSpec {
        let own = self.layers.get(layer).copied().unwrap_or_default();
        LayerSpec {
            dense: own.dense,
            exact_prompt: own.exact_prompt.or(Some(self.exact_prompt)),
            skip_margin: own.skip_margin.or(self.skip_margin),
            store: own.store.or(Some(self.store)),
        }
    }

    /// The kernel of a layer, with an empty cache.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] for a layer that the spec does not have; else what the kernels' constructors refuse, and
    /// [`validate`](Self::validate) says more clearly.
    pub fn build(
        &self,
        layer: usize,
        context: &KernelContext,
    ) -> Result<Box<dyn AttentionKernel>, AttentionError> {
        if !self.layers.is_empty() && layer >= self.layers.len() {
            let (expected, got) = (layer.saturating_add(1), self.layers.len());
            return Err(CoreError::ProfileShape { what: "layers", expected, got }.into());
        }
        let (shape, options) = (context.shape, self.options(layer, context));
        Ok(match (self.kernel, self.hybrid_config(layer, context)) {
            (KernelKind::Delta, _) => {
                Box::new(DeltaAttention::new(shape, self.thresholds_for(shape), layer, options)?)
            }
            (KernelKind::Hybrid, Some(config)) => Box::new(HybridAttention::new(shape, config)?),
            _ => Box::new(DenseAttention::new(shape, options)?),
        })
    }

    /// What the kernel of a layer is given, whichever it is.
    pub fn options(&self, layer: usize, context: &KernelContext) -> AttentionOptions {
        AttentionOptions {
            scale: self.scale,
            softcap: self.softcap,
            sink_logits: context.sink_logits.get(layer).cloned(),
            mask: context.mask(layer),
            log_sum_exp: context.log_sum_exp,
            exact_rewind: context.exact_rewind,
            store: self.layer_store(layer, context),
            budget: context.budget.clone(),
            isa: context.isa,
            precision: self.precision,
            parallel: context.parallel,
        }
    }

    /// Settings of hybrid attention in a layer; `None` in a layer that is to be dense, by [itself](LayerSpec#structfield.dense) or by its
    /// [mask](Self#structfield.dense_up_to). The kernel of the spec is not looked at, so that other kernels can be compared with it.
    pub fn hybrid_config(&self, layer: usize, context: &KernelContext) -> Option<HybridConfig> {
        if self.is_dense_under(context.mask(layer)) {
            return None;
        }
        let plan = self.layer(layer);
        let config = || HybridConfig {
            thresholds: self.thresholds_for(context.shape),
            layer,
            exact_window: self.exact_window,
            exact_prompt: plan.exact_prompt.unwrap_or(self.exact_prompt),
            exact_sinks: self.exact_sinks,
            codes_from: None,
            skip_margin: plan.skip_margin,
            options: self.options(layer, context),
        };
        (!plan.dense || plan.store == Some(KvStore::Compact)).then(config)
    }

    /// Whether prompts of `a` and `b` tokens that begin alike are [attended alike](HybridConfig::reads_alike) as far as that goes, in all
    /// layers.
    pub fn reads_alike(&self, context: &KernelContext, a: usize, b: usize) -> bool {
        // A layer beyond all that is said is as they are where nothing is said.
        let mut layers = 0..=self.layers.len().max(context.masks.len());
        let alike = |layer| self.hybrid_config(layer, context).is_none_or(|config| config.reads_alike(a, b));
        self.kernel == KernelKind::Dense || layers.all(alike)
    }

    /// The store of a layer. A layer with a store of its own takes the nearest that dense attention has when all are to be dense; a
    /// store for all that it does not have is left to be refused.
    fn layer_store(&self, layer: usize, context: &KernelContext) -> KvStore {
        let own = self.layers.get(layer).and_then(|layer| layer.store);
        match self.kernel {
            KernelKind::Dense => own.map_or(self.store, KvStore::dense),
            KernelKind::Hybrid if self.is_dense_under(context.mask(layer)) => {
                own.unwrap_or(self.store).dense()
            }
            _ => own.unwrap_or(self.store),
        }
    }

    /// Whether a layer of this mask is to be dense, because its queries attend to [so few](Self#structfield.dense_up_to) keys.
    pub fn is_dense_under(&self, mask: Mask) -> bool {
        mask.most_keys().is_some_and(|keys| keys <= self.dense_up_to)
    }

    /// The thresholds, with a bare list cut into layers and heads.
    fn thresholds_for(&self, shape: AttentionShape) -> ThresholdPolicy {
        match &self.thresholds {
            ThresholdPolicy::Profile(profile) => ThresholdPolicy::Profile(cut(profile, shape)),
            ThresholdPolicy::TargetSparsity(target) => {
                ThresholdPolicy::TargetSparsity(match target.profile() {
                    Some(start) => target.clone().from_profile(cut(start, shape)),
                    None => target.clone(),
                })
            }
            policy => policy.clone(),
        }
    }
}

/// A bare list of thresholds, cut into layers and heads. One of another length stays as it is, and is refused by the kernel.
fn cut(profile: &Arc<ThresholdProfile>, shape: AttentionShape) -> Arc<ThresholdProfile> {
    if !is_list(profile) {
        return Arc::clone(profile);
    }
    let size = shape.kv_heads().saturating_mul(shape.head_dim());
    let dimensions = [profile.thresholds().len() / size, shape.kv_heads(), shape.head_dim()];
    let cut = ThresholdProfile::new(profile.model(), dimensions, profile.thresholds().to_vec());
    cut.map_or_else(|_| Arc::clone(profile), Arc::new)
}

/// Whether thresholds came without dimensions.
pub(super) fn is_list(profile: &ThresholdProfile) -> bool {
    matches!(profile.shape(), [1, 1, _])
}

#[cfg(test)]
mod tests {
    use deltallm_core::ModelFingerprint;

    use super::*;
    use crate::{HeadsView, HeadsViewMut, Isa};

    fn context(shape: AttentionShape) -> KernelContext {
        KernelContext::new(shape).isa(Isa::from_env().unwrap())
    }

    fn shape() -> AttentionShape {
        AttentionShape::new(2, 1, 4).unwrap()
    }

    /// Two layers of one kv head of 4 channels: one dense, one hybrid.
    fn two_layers() -> KernelSpec {
        let thresholds = (0..8).map(|i| i as f32 / 8.0).collect();
        let thresholds = ThresholdProfile::new(ModelFingerprint(7), [2, 1, 4], thresholds).unwrap();
        KernelSpec {
            thresholds: ThresholdPolicy::Profile(Arc::new(thresholds)),
            exact_window: ExactWindow::Sliding(8),
            layers: vec![LayerSpec { dense: true, ..LayerSpec::default() }, LayerSpec::default()],
            ..KernelSpec::default()
        }
    }

    #[test]
    fn a_spec_and_a_configuration_of_which_nothing_is_said_are_the_same() {
        let spec = KernelSpec::default().hybrid_config(0, &context(shape())).unwrap();
        let options = AttentionOptions::default().isa(Isa::from_env().unwrap());
        let config = HybridConfig::default().options(options);
        assert_eq!(format!("{:?}", spec.options(config.options.clone())), format!("{config:?}"));
        let own = KernelSpec::default().options(0, &context(shape()));
        assert_eq!((own.store, own.precision, own.scale), (KvStore::F16, Precision::F32, None));
        assert_eq!(own.store, HybridConfig::default().options.store);
    }

    #[test]
    fn every_layer_gets_its_own_kernel() {
        let (q, k, mut out) = ([1.0; 20 * 2 * 4], [1.0; 20 * 4], [0.0; 20 * 2 * 4]);
        let (q, k) = (HeadsView::new(&q, [20, 2, 4]).unwrap(), HeadsView::new(&k, [20, 1, 4]).unwrap());
        let mut elements = |kernel| {
            let spec = KernelSpec { kernel, ..two_layers() };
            [0, 1].map(|layer| {
                let mut kernel = spec.build(layer, &context(shape())).unwrap();
                let out = HeadsViewMut::new(&mut out, [20, 2, 4]).unwrap();
                kernel.forward_heads(q, k, k, out).unwrap();
                kernel.stats().total().elements
            })
        };
        assert_eq!(elements(KernelKind::Hybrid), [0, 80], "the first is dense");
        assert_eq!(elements(KernelKind::Delta), [80, 80], "delta is delta everywhere");
        assert_eq!(elements(KernelKind::Dense), [0, 0]);
        assert!(matches!(
            two_layers().build(2, &context(shape())),
            Err(AttentionError::Core(CoreError::ProfileShape { what: "layers", expected: 3, got: 2 }))
        ));
        let other = AttentionShape::new(2, 1, 8).unwrap();
        assert!(two_layers().build(1, &context(other)).is_err());
    }

    #[test]
    fn in_a_compact_cache_every_layer_is_coded() {
        let context = context(shape());
        let coded = |store| {
            let spec = KernelSpec { store, ..two_layers() };
            [0, 1].map(|layer| spec.hybrid_config(layer, &context).map(|config| config.options.store))
        };
        assert_eq!(coded(KvStore::Compact), [Some(KvStore::Compact); 2]);
        assert_eq!(coded(KvStore::Int8), [None, Some(KvStore::Int8)]);
        let alone = KernelSpec { store: KvStore::Compact, kernel: KernelKind::Dense, ..two_layers() };
        let own = vec![LayerSpec::default().store(KvStore::Compact); 2];
        assert!(alone.build(0, &context).is_err(), "dense attention has no such store");
        assert_eq!(alone.layers(own).options(0, &context).store, KvStore::Int8);
    }

    #[test]
    fn layers_that_attend_to_few_keys_are_dense() {
        let masks = vec![Mask::SlidingWindow(512), Mask::Chunked(513), Mask::Causal, Mask::Bidirectional];
        let context = context(shape()).masks(masks);
        let layers =
            |spec: KernelSpec| [0, 1, 2, 3].map(|layer| spec.hybrid_config(layer, &context).is_some());
        let stores = |spec: KernelSpec| [0, 1].map(|layer| spec.options(layer, &context).store);
        let compact = || KernelSpec::default().store(KvStore::Compact);
        assert_eq!(layers(compact()), [false, true, true, true]);
        assert_eq!(stores(compact()), [KvStore::Int8, KvStore::Compact]);
        assert_eq!(stores(KernelSpec::default()), [KvStore::F16; 2]);
        let own = vec![LayerSpec::default().store(KvStore::Compact); 4];
        assert_eq!(stores(KernelSpec::default().layers(own)), [KvStore::Int8, KvStore::Compact]);
        for every in [compact().dense_up_to(0), PaperRule::default().into()] {
            assert_eq!(layers(every), [true; 4]);
        }
        assert_eq!(stores(compact().dense_up_to(0)), [KvStore::Compact; 2]);
        assert_eq!(
            stores(compact().kernel(KernelKind::Delta)),
            [KvStore::Compact; 2],
            "delta is delta everywhere"
        );
    }

    #[test]
    fn a_layer_is_filled_in_from_the_spec() {
        let own = LayerSpec {
            dense: false,
            exact_prompt: Some(3),
            skip_margin: Some(SkipMargin::Fixed(2.0)),
            store: Some(KvStore::Bf16),
        };
        let spec = KernelSpec {
            exact_prompt: 7,
            skip_margin: Some(SkipMargin::Fixed(4.0)),
            layers: vec![LayerSpec::default(), own],
            ..two_layers()
        };
        let config = |layer| spec.hybrid_config(layer, &context(shape())).unwrap();
        assert_eq!((config(0).exact_prompt, config(1).exact_prompt), (7, 3));
        let margins = [0, 1].map(|layer| config(layer).skip_margin);
        assert_eq!(margins, [Some(SkipMargin::Fixed(4.0)), Some(SkipMargin::Fixed(2.0))]);
        assert_eq!(
            (config(1).layer, config(1).exact_window, config(1).exact_sinks),
            (1, ExactWindow::Sliding(8), 4)
        );
        assert_eq!([0, 1].map(|layer| spec.layer(layer).store), [Some(KvStore::F16), Some(KvStore::Bf16)]);
        assert!(two_layers().hybrid_config(0, &context(shape())).is_none());
    }

    #[test]
    fn a_list_of_thresholds_is_cut_into_layers_and_heads() {
        let numbers: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let list = ThresholdProfile::new(ModelFingerprint(0), [1, 1, 12], numbers).unwrap();
        let spec =
            KernelSpec { thresholds: ThresholdPolicy::Profile(Arc::new(list)), ..KernelSpec::default() };
        let shape = AttentionShape::new(4, 2, 3).unwrap();
        let config = spec.hybrid_config(1, &context(shape)).unwrap();
        let heads = config.thresholds.for_layer(1, 2, 3).unwrap();
        assert_eq!([heads[0].start(), heads[1].start()], [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]);
        spec.build(1, &context(shape)).unwrap();
        assert!(spec.build(0, &context(AttentionShape::new(5, 5, 1).unwrap())).is_err());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_reads_back_and_what_is_missing_has_its_default() {
        let full = r#"{"kernel":"hybrid","store":"compact","precision":"int16","scale":0.25,"softcap":50.0,
            "thresholds":{"channels":[0.5,0.25]},"window":"block:0.05","sinks":2,"skip_margin":"0.6ln-0.5","exact_prompt":9,"dense_up_to":512,
            "layers":[{"dense":true,"exact_prompt":null,"skip_margin":"4.5","store":"int8"}]}"#;
        let spec: KernelSpec = serde_json::from_str(full).unwrap();
        let again = serde_json::to_string(&spec).unwrap();
        assert_eq!(again, full.split_whitespace().collect::<String>());
        // Files without a store have always meant f32, and those that say no more that nothing is skipped and every layer coded.
        let usual =
            || KernelSpec { store: KvStore::F32, skip_margin: None, dense_up_to: 0, ..KernelSpec::default() };
        assert_eq!(serde_json::from_str::<KernelSpec>("{}").unwrap(), usual());
        for spec in [usual(), KernelSpec::default()] {
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(text.contains("store"), spec.store == KvStore::F16, "{text}");
            assert_eq!(serde_json::from_str::<KernelSpec>(&text).unwrap(), spec);
        }
        let short: KernelSpec = serde_json::from_str(r#"{"window":16,"skip_margin":4.5}"#).unwrap();
        let expected = KernelSpec {
            exact_window: ExactWindow::Sliding(16),
            skip_margin: Some(SkipMargin::Fixed(4.5)),
            ..usual()
        };
        assert_eq!(short, expected);
        for (bad, complaint) in [
            (r#"{"windows":16}"#, "unknown field `windows`"),
            (r#"{"window":16.0}"#, "window: expected a number of keys"),
            (r#"{"window":[]}"#, "expected a number or a text"),
            (r#"{"kernel":"flash"}"#, "unknown variant `flash`, expected one of `dense`, `delta`, `hybrid`"),
            (r#"{"layers":[{"denser":true}]}"#, "unknown field `denser`"),
            (r#"{"sinks":-1}"#, "invalid value: integer `-1`"),
        ] {
            let error = serde_json::from_str::<KernelSpec>(bad).unwrap_err().to_string();
            assert!(error.contains(complaint), "{bad}: {error}");
        }
    }
}
