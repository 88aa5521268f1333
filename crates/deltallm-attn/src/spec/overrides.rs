//! What a caller says over what a profile says.

use std::sync::Arc;

use deltallm_core::{KvStore, ThresholdPolicy};

use super::{kernel_spec::KernelSpec, kind::KernelKind};
use crate::{ExactWindow, Precision, SkipMargin};

/// What a caller says explicitly, on a command line or in a configuration; `None` leaves what the spec has.
///
/// ```
/// use deltallm_attn::{KernelSpec, SpecOverrides, ExactWindow};
///
/// let given = SpecOverrides::default().exact_window(ExactWindow::Sliding(16));
/// let spec = KernelSpec::default().with(&given);
/// assert_eq!((spec.exact_window, spec.exact_sinks), (ExactWindow::Sliding(16), 4));
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct SpecOverrides {
    /// [`KernelSpec::kernel`].
    pub kernel: Option<KernelKind>,
    /// The spec's `store`; a layer with a store of its own keeps it.
    pub store: Option<KvStore>,
    /// [`KernelSpec::precision`].
    pub precision: Option<Precision>,
    /// [`KernelSpec::scale`].
    pub scale: Option<f32>,
    /// [`KernelSpec::softcap`].
    pub softcap: Option<f32>,
    /// [`KernelSpec::thresholds`]; a target sparsity starts from the calibrated thresholds that the spec has, if it has any. Where it has
    /// none nothing is skipped beside them, unless [`skip_margin`](Self::skip_margin) says so, and no layer is dense because its queries
    /// attend to few keys: these thresholds alone are what is asked about.
    pub thresholds: Option<ThresholdPolicy>,
    /// [`KernelSpec::exact_window`].
    pub exact_window: Option<ExactWindow>,
    /// [`KernelSpec::exact_sinks`].
    pub exact_sinks: Option<usize>,
    /// [`KernelSpec::skip_margin`], or `Some(None)` for none, in all layers. From what length of a prompt on skipping gains anything
    /// is known for the profile's own margins only: with another one no prompt is attended exactly, unless
    /// [`exact_prompt`](Self::exact_prompt) says so.
    pub skip_margin: Option<Option<SkipMargin>>,
    /// [`KernelSpec::exact_prompt`], in all layers.
    pub exact_prompt: Option<usize>,
}

/// Every method takes a value, or an `Option` as a command line has it.
impl SpecOverrides {
    /// Sets [`kernel`](Self#structfield.kernel).
    #[must_use]
    pub fn kernel(self, kernel: impl Into<Option<KernelKind>>) -> Self {
        Self { kernel: kernel.into(), ..self }
    }

    /// Sets [`store`](Self#structfield.store).
    #[must_use]
    pub fn store(self, store: impl Into<Option<KvStore>>) -> Self {
        Self { store: store.into(), ..self }
    }

    /// Sets [`precision`](Self#structfield.precision).
    #[must_use]
    pub fn precision(self, precision: impl Into<Option<Precision>>) -> Self {
        Self { precision: precision.into(), ..self }
    }

    /// Sets [`scale`](Self#structfield.scale).
    #[must_use]
    pub fn scale(self, scale: impl Into<Option<f32>>) -> Self {
        Self { scale: scale.into(), ..self }
    }

    /// Sets [`softcap`](Self#structfield.softcap).
    #[must_use]
    pub fn softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// Sets [`thresholds`](Self#structfield.thresholds).
    #[must_use]
    pub fn thresholds(self, thresholds: impl Into<Option<ThresholdPolicy>>) -> Self {
        Self { thresholds: thresholds.into(), ..self }
    }

    /// Sets [`exact_window`](Self#structfield.exact_window).
    #[must_use]
    pub fn exact_window(self, window: impl Into<Option<ExactWindow>>) -> Self {
        Self { exact_window: window.into(), ..self }
    }

    /// Sets [`exact_sinks`](Self#structfield.exact_sinks).
    #[must_use]
    pub fn exact_sinks(self, sinks: impl Into<Option<usize>>) -> Self {
        Self { exact_sinks: sinks.into(), ..self }
    }

    /// Sets [`skip_margin`](Self#structfield.skip_margin): `Some(None)` skips nothing.
    #[must_use]
    pub fn skip_margin(self, margin: Option<Option<SkipMargin>>) -> Self {
        Self { skip_margin: margin, ..self }
    }

    /// Sets [`exact_prompt`](Self#structfield.exact_prompt).
    #[must_use]
    pub fn exact_prompt(self, tokens: impl Into<Option<usize>>) -> Self {
        Self { exact_prompt: tokens.into(), ..self }
    }
}

impl KernelSpec {
    /// These settings, but for what the caller has said.
    #[must_use]
    pub fn with(mut self, given: &SpecOverrides) -> Self {
        self.kernel = given.kernel.unwrap_or(self.kernel);
        self.store = given.store.unwrap_or(self.store);
        self.precision = given.precision.unwrap_or(self.precision);
        self.scale = given.scale.or(self.scale);
        self.softcap = given.softcap.or(self.softcap);
        self.exact_window = given.exact_window.unwrap_or(self.exact_window);
        self.exact_sinks = given.exact_sinks.unwrap_or(self.exact_sinks);
        if given.thresholds.is_some() && !matches!(self.thresholds, ThresholdPolicy::Profile(_)) {
            self.skip_margin = None;
            self.layers.iter_mut().for_each(|layer| layer.skip_margin = None);
            self.dense_up_to = 0;
        }
        self.thresholds = match (given.thresholds.clone(), self.thresholds) {
            (Some(ThresholdPolicy::TargetSparsity(target)), ThresholdPolicy::Profile(calibrated)) => {
                ThresholdPolicy::TargetSparsity(target.from_profile(Arc::clone(&calibrated)))
            }
            (given, own) => given.unwrap_or(own),
        };
        let exact_prompt = given.exact_prompt.or(given.skip_margin.map(|_| 0));
        if let Some(margin) = given.skip_margin {
            self.skip_margin = margin;
            self.layers.iter_mut().for_each(|layer| layer.skip_margin = None);
        }
        if let Some(tokens) = exact_prompt {
            self.exact_prompt = tokens;
            self.layers.iter_mut().for_each(|layer| layer.exact_prompt = None);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use deltallm_core::{ModelFingerprint, TargetSparsity, ThresholdProfile};

    use super::*;
    use crate::{AttentionShape, KernelContext, LayerSpec};

    const OWN: SkipMargin = SkipMargin::Fixed(5.0);
    const GIVEN: SkipMargin = SkipMargin::Fixed(2.0);

    fn calibrated() -> Arc<ThresholdProfile> {
        Arc::new(ThresholdProfile::new(ModelFingerprint(1), [2, 1, 4], vec![0.5; 8]).unwrap())
    }

    /// A profile's settings: a margin, a store and a length of exact prompts for each layer.
    fn profile() -> KernelSpec {
        let layer = LayerSpec {
            exact_prompt: Some(700),
            skip_margin: Some(OWN),
            store: Some(KvStore::Compact),
            ..LayerSpec::default()
        };
        KernelSpec {
            thresholds: ThresholdPolicy::Profile(calibrated()),
            layers: vec![LayerSpec { dense: true, ..LayerSpec::default() }, layer],
            ..KernelSpec::default()
        }
    }

    fn with(given: SpecOverrides) -> KernelSpec {
        profile().with(&given)
    }

    #[test]
    fn nothing_said_changes_nothing() {
        assert_eq!(with(SpecOverrides::default()), profile());
    }

    #[test]
    fn a_margin_of_the_callers_holds_in_all_layers_and_drops_the_exact_prompts_of_the_profile() {
        let spec = with(SpecOverrides { skip_margin: Some(Some(GIVEN)), ..Default::default() });
        for layer in [0, 1] {
            let plan = spec.layer(layer);
            assert_eq!((plan.skip_margin, plan.exact_prompt), (Some(GIVEN), Some(0)), "layer {layer}");
        }
        assert!(spec.layer(0).dense, "what is dense stays so");
        let off = with(SpecOverrides { skip_margin: Some(None), ..Default::default() });
        assert_eq!((off.layer(1).skip_margin, off.layer(1).exact_prompt), (None, Some(0)));
    }

    #[test]
    fn nothing_is_skipped_beside_thresholds_of_the_callers_where_none_were_calibrated() {
        let spec = KernelSpec { thresholds: ThresholdPolicy::Uniform(0.1), ..profile() };
        let given = SpecOverrides { thresholds: Some(ThresholdPolicy::Uniform(0.2)), ..Default::default() };
        let spec = spec.with(&given);
        assert_eq!([0, 1].map(|layer| spec.layer(layer).skip_margin), [None; 2]);
    }

    #[test]
    fn a_target_starts_from_a_bare_list_too() {
        let list = ThresholdProfile::new(ModelFingerprint(0), [1, 1, 8], vec![0.5; 8]).unwrap();
        let spec = KernelSpec { thresholds: ThresholdPolicy::Profile(Arc::new(list)), ..profile() };
        let target = Some(ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.5)));
        let spec = spec.with(&SpecOverrides { thresholds: target, ..Default::default() });
        let shape = AttentionShape::new(1, 1, 4).unwrap();
        spec.validate(shape, 2).unwrap();
        spec.build(1, &KernelContext::new(shape)).unwrap();
    }

    #[test]
    fn exact_prompts_of_the_callers_hold_with_any_margin() {
        let spec = with(SpecOverrides { exact_prompt: Some(9), ..Default::default() });
        assert_eq!((spec.layer(1).skip_margin, spec.layer(1).exact_prompt), (Some(OWN), Some(9)));
        let given =
            SpecOverrides { exact_prompt: Some(9), skip_margin: Some(Some(GIVEN)), ..Default::default() };
        let spec = with(given);
        assert_eq!((spec.layer(1).skip_margin, spec.layer(1).exact_prompt), (Some(GIVEN), Some(9)));
    }

    #[test]
    fn a_store_of_a_layer_wins_over_that_of_the_caller() {
        let spec = with(SpecOverrides { store: Some(KvStore::F16), ..Default::default() });
        assert_eq!([0, 1].map(|layer| spec.layer(layer).store), [Some(KvStore::F16), Some(KvStore::Compact)]);
    }

    #[test]
    fn a_target_starts_from_the_calibrated_thresholds() {
        let target = ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.5));
        let given = SpecOverrides { thresholds: Some(target.clone()), ..Default::default() };
        let ThresholdPolicy::TargetSparsity(led) = with(given.clone()).thresholds else {
            panic!("no target")
        };
        assert_eq!((led.zero_fraction(), led.profile()), (0.5, Some(&calibrated())));
        assert_eq!(KernelSpec::default().with(&given).thresholds, target);
        let theta = ThresholdPolicy::Uniform(0.6);
        let given = SpecOverrides { thresholds: Some(theta.clone()), ..Default::default() };
        assert_eq!(with(given).thresholds, theta);
    }

    #[test]
    fn thresholds_of_the_callers_are_alone_where_there_is_no_profile() {
        let given = SpecOverrides { thresholds: Some(ThresholdPolicy::Uniform(0.6)), ..Default::default() };
        assert_eq!(KernelSpec::default().skip_margin, Some(SkipMargin::CAUTIOUS));
        assert_eq!(KernelSpec::default().with(&given).skip_margin, None);
        assert_eq!(KernelSpec::default().with(&given).dense_up_to, 0);
        assert_eq!(with(given.clone()).skip_margin, profile().skip_margin);
        let given = SpecOverrides { skip_margin: Some(Some(GIVEN)), ..given };
        assert_eq!(KernelSpec::default().with(&given).skip_margin, Some(GIVEN));
    }

    #[test]
    fn single_settings_are_taken_one_by_one() {
        let given = SpecOverrides {
            kernel: Some(KernelKind::Delta),
            precision: Some(Precision::Int16),
            scale: Some(0.5),
            softcap: Some(50.0),
            exact_window: Some(ExactWindow::Sliding(3)),
            exact_sinks: Some(1),
            ..Default::default()
        };
        let expected = KernelSpec {
            kernel: KernelKind::Delta,
            precision: Precision::Int16,
            scale: Some(0.5),
            softcap: Some(50.0),
            exact_window: ExactWindow::Sliding(3),
            exact_sinks: 1,
            ..profile()
        };
        assert_eq!(with(given), expected);
    }
}
