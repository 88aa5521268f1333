//! Checks of settings, each with the name of its field.

use deltallm_core::{KvStore, ThresholdPolicy, ThresholdProfile};

use super::{
    kernel_spec::{KernelSpec, is_list},
    kind::KernelKind,
};
use crate::{AttentionError, AttentionShape, Isa, Precision, SpecError};

impl KernelSpec {
    /// Checks that the settings are in their ranges, that they are for a model of `layers` layers of this shape, and that its kernel
    /// takes them. Settings that the kernel has no use for are checked too.
    ///
    /// ```
    /// use deltallm_attn::{AttentionShape, KernelKind, KernelSpec, KvStore};
    ///
    /// let spec = KernelSpec::default().kernel(KernelKind::Delta).store(KvStore::Int8);
    /// let error = spec.validate(AttentionShape::new(4, 2, 8)?, 1).unwrap_err();
    /// assert_eq!((error.field.as_str(), error.got.as_str()), ("store", "int8"));
    /// # Ok::<(), deltallm_attn::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// [`SpecError`] names the first field that does not fit.
    pub fn validate(&self, shape: AttentionShape, layers: usize) -> Result<(), SpecError> {
        for (field, number) in [("scale", self.scale), ("softcap", self.softcap)] {
            if let Some(got) = number.filter(|number| !(number.is_finite() && *number > 0.0)) {
                return Err(SpecError::new(field, "a finite number > 0", got));
            }
        }
        named("window", self.exact_window.check())?;
        self.skip_margin.map_or(Ok(()), |margin| named("skip_margin", margin.check()))?;
        if !self.layers.is_empty() && self.layers.len() != layers {
            let expected = format!("none, or {layers}, one for each layer of the model");
            return Err(SpecError::new("layers", expected, self.layers.len()));
        }
        for (layer, plan) in self.layers.iter().enumerate() {
            let field = || format!("layers[{layer}].skip_margin");
            plan.skip_margin.map_or(Ok(()), |margin| named(field(), margin.check()))?;
        }
        self.validate_thresholds(shape, layers)?;
        self.validate_stores()
    }

    /// Checks what a program asks of settings for a model that it knows, on the machine that it runs on: that there are
    /// instructions for the [precision](Self::precision) (kernels would take f32 instead), and that the sinks leave something of
    /// a context of `context` tokens.
    ///
    /// # Errors
    /// [`SpecError`], as above.
    pub fn validate_on(&self, isa: Isa, context: usize) -> Result<(), SpecError> {
        if self.exact_sinks > context {
            let expected = format!("at most {context}, the model's context");
            return Err(SpecError::new("sinks", expected, self.exact_sinks));
        }
        if !self.precision.is_multiplied_by(isa) {
            let possible: Vec<_> = Precision::ALL
                .into_iter()
                .filter(|precision| precision.is_multiplied_by(isa))
                .map(|precision| precision.to_string())
                .collect();
            let expected = format!("one that {isa} has instructions for ({})", possible.join(", "));
            return Err(SpecError::new("precision", expected, self.precision));
        }
        Ok(())
    }

    fn validate_thresholds(&self, shape: AttentionShape, layers: usize) -> Result<(), SpecError> {
        let fits = |field: &str, profile: &ThresholdProfile| {
            let dimensions = [layers, shape.kv_heads(), shape.head_dim()];
            let (expected, got) =
                (dimensions.into_iter().fold(1, usize::saturating_mul), profile.thresholds().len());
            if is_list(profile) && expected != got {
                let expected = format!("{expected} numbers, layers * kv_heads * head_dim");
                let layer = shape.kv_heads().saturating_mul(shape.head_dim());
                let got = match got / layer {
                    whole if got == whole * layer => {
                        format!("{got} (layers: {whole} in the profile, {layers} in the model)")
                    }
                    _ => got.to_string(),
                };
                return Err(SpecError::new(field, expected, got));
            }
            if !is_list(profile) && dimensions != profile.shape() {
                let expected = format!("those of {dimensions:?}, layers, kv_heads and head_dim");
                return Err(SpecError::new(field, expected, format!("{:?}", profile.shape())));
            }
            Ok(())
        };
        match &self.thresholds {
            ThresholdPolicy::Uniform(theta) if !(theta.is_finite() && *theta >= 0.0) => {
                Err(SpecError::new("thresholds.theta", "a finite number >= 0", theta))
            }
            ThresholdPolicy::TargetSparsity(target) => {
                let (field, share) = ("thresholds.target_sparsity", target.zero_fraction());
                if !(0.0..=1.0).contains(&share) {
                    return Err(SpecError::new(field, "a number in 0..=1", share));
                }
                target.profile().map_or(Ok(()), |profile| fits(field, profile))
            }
            ThresholdPolicy::Profile(profile) => fits("thresholds.channels", profile),
            _ => Ok(()),
        }
    }

    /// Dense attention has no deltas to keep, delta attention nothing else.
    fn validate_stores(&self) -> Result<(), SpecError> {
        match self.kernel {
            KernelKind::Dense if self.store != self.store.dense() => {
                let expected = "f32, f16, bf16 or int8 for dense attention (compact holds deltas, and belongs to hybrid)";
                Err(SpecError::new("store", expected, self.store))
            }
            KernelKind::Delta => {
                let delta = |field: String, store: KvStore| match store.is_delta() {
                    true => Ok(()),
                    false => {
                        let expected = "f32, f16, bf16 or compact for delta attention (int8 has no deltas, and belongs to hybrid \
                                        or dense)";
                        Err(SpecError::new(field, expected, store))
                    }
                };
                delta("store".to_owned(), self.store)?;
                let own = self.layers.iter().map(|layer| layer.store).enumerate();
                own.filter_map(|(layer, store)| Some((layer, store?)))
                    .try_for_each(|(layer, store)| delta(format!("layers[{layer}].store"), store))
            }
            _ => Ok(()),
        }
    }
}

/// The same complaint with the name of the field.
fn named(field: impl Into<String>, checked: Result<(), AttentionError>) -> Result<(), SpecError> {
    checked.map_err(|error| match error {
        AttentionError::Setting { expected, got, .. } => SpecError::new(field, expected, got),
        other => SpecError::new(field, "a setting that kernels take", other),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use deltallm_core::{ModelFingerprint, TargetSparsity};

    use super::*;
    use crate::{ExactWindow, KernelContext, LayerSpec, SkipMargin};

    const LAYERS: usize = 2;

    fn shape() -> AttentionShape {
        AttentionShape::new(4, 2, 8).unwrap()
    }

    fn channels(shape: [usize; 3]) -> Arc<ThresholdProfile> {
        let thresholds = vec![0.5; shape.iter().product()];
        Arc::new(ThresholdProfile::new(ModelFingerprint(0), shape, thresholds).unwrap())
    }

    fn one(layer: LayerSpec) -> Vec<LayerSpec> {
        vec![LayerSpec::default(), layer]
    }

    /// What is refused is refused by the name of its field, and kernels refuse it too.
    #[test]
    fn settings_that_no_kernel_takes_are_refused_by_name() {
        let usual = KernelSpec::default;
        let delta = KernelKind::Delta;
        let calibrated = |shape| ThresholdPolicy::Profile(channels(shape));
        let led = |share| TargetSparsity::new(share);
        let margin = Some(SkipMargin::Fixed(0.0));
        for (spec, field, got) in [
            (KernelSpec { scale: Some(0.0), ..usual() }, "scale", "0"),
            (KernelSpec { scale: Some(f32::INFINITY), ..usual() }, "scale", "inf"),
            (KernelSpec { softcap: Some(-1.0), ..usual() }, "softcap", "-1"),
            (KernelSpec { exact_window: ExactWindow::Sliding(0), ..usual() }, "window", "0"),
            (KernelSpec { exact_window: ExactWindow::Block { scale: 1.5 }, ..usual() }, "window", "1.5"),
            (KernelSpec { skip_margin: margin, ..usual() }, "skip_margin", "0"),
            (
                KernelSpec {
                    layers: one(LayerSpec { skip_margin: margin, ..Default::default() }),
                    ..usual()
                },
                "layers[1].skip_margin",
                "0",
            ),
            (KernelSpec { layers: vec![LayerSpec::default()], ..usual() }, "layers", "1"),
            (KernelSpec { thresholds: ThresholdPolicy::Uniform(-1.0), ..usual() }, "thresholds.theta", "-1"),
            (
                KernelSpec { thresholds: ThresholdPolicy::Uniform(f32::NAN), ..usual() },
                "thresholds.theta",
                "NaN",
            ),
            (
                KernelSpec { thresholds: ThresholdPolicy::TargetSparsity(led(1.5)), ..usual() },
                "thresholds.target_sparsity",
                "1.5",
            ),
            (
                KernelSpec {
                    thresholds: ThresholdPolicy::TargetSparsity(led(0.5).from_profile(channels([2, 2, 4]))),
                    ..usual()
                },
                "thresholds.target_sparsity",
                "[2, 2, 4]",
            ),
            (KernelSpec { thresholds: calibrated([2, 2, 4]), ..usual() }, "thresholds.channels", "[2, 2, 4]"),
            (KernelSpec { thresholds: calibrated([1, 2, 8]), ..usual() }, "thresholds.channels", "[1, 2, 8]"),
            (KernelSpec { thresholds: calibrated([1, 1, 33]), ..usual() }, "thresholds.channels", "33"),
            (
                KernelSpec { kernel: KernelKind::Dense, store: KvStore::Compact, ..usual() },
                "store",
                "compact",
            ),
            (KernelSpec { kernel: delta, store: KvStore::Int8, ..usual() }, "store", "int8"),
            (
                KernelSpec {
                    kernel: delta,
                    layers: one(LayerSpec { store: Some(KvStore::Int8), ..Default::default() }),
                    ..usual()
                },
                "layers[1].store",
                "int8",
            ),
        ] {
            let error = spec.validate(shape(), LAYERS).unwrap_err();
            assert_eq!((error.field.as_str(), error.got.as_str()), (field, got), "{error}");
            assert!(error.to_string().starts_with(&format!("{field}: expected ")), "{error}");
            if spec.kernel == KernelKind::Hybrid {
                assert!(spec.build(1, &KernelContext::new(shape())).is_err() || field == "layers", "{error}");
            }
        }
    }

    #[test]
    fn thresholds_for_another_number_of_layers_say_how_many_there_are_and_should_be() {
        for layers in [1, 3] {
            let channels = channels([1, 1, layers * 16]);
            let spec = KernelSpec { thresholds: ThresholdPolicy::Profile(channels), ..KernelSpec::default() };
            let error = spec.validate(shape(), LAYERS).unwrap_err().to_string();
            let end = format!("got {} (layers: {layers} in the profile, 2 in the model)", layers * 16);
            assert!(error.ends_with(&end), "{error}");
        }
        let spec = KernelSpec { layers: vec![LayerSpec::default()], ..KernelSpec::default() };
        let error = spec.validate(shape(), LAYERS).unwrap_err().to_string();
        assert_eq!(error, "layers: expected none, or 2, one for each layer of the model, got 1");
    }

    #[test]
    fn settings_that_pass_make_kernels() {
        for kernel in KernelKind::ALL {
            for store in KvStore::ALL {
                let dense = LayerSpec { dense: true, ..LayerSpec::default() };
                for layers in [Vec::new(), vec![LayerSpec::default(), dense]] {
                    for thresholds in [[2, 2, 8], [1, 1, 32]] {
                        let thresholds = ThresholdPolicy::Profile(channels(thresholds));
                        let spec = KernelSpec {
                            kernel,
                            store,
                            thresholds,
                            layers: layers.clone(),
                            ..Default::default()
                        };
                        let refused = matches!(
                            (kernel, store),
                            (KernelKind::Dense, KvStore::Compact) | (KernelKind::Delta, KvStore::Int8)
                        );
                        assert_eq!(spec.validate(shape(), LAYERS).is_err(), refused, "{kernel}, {store}");
                        for layer in 0..LAYERS {
                            let made = spec.build(layer, &KernelContext::new(shape()));
                            assert_eq!(made.is_err(), refused, "{kernel}, {store}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_machine_and_a_context_have_their_limits() {
        let scalar: Isa = "scalar".parse().unwrap();
        KernelSpec { exact_sinks: 100, ..Default::default() }.validate_on(scalar, 100).unwrap();
        let error =
            KernelSpec { exact_sinks: 101, ..Default::default() }.validate_on(scalar, 100).unwrap_err();
        assert_eq!(error.to_string(), "sinks: expected at most 100, the model's context, got 101");
        for isa in Isa::available() {
            for precision in Precision::ALL {
                let checked = KernelSpec { precision, ..Default::default() }.validate_on(isa, 100);
                assert_eq!(checked.is_ok(), precision.is_multiplied_by(isa), "{isa}, {precision}");
                if let Err(error) = checked {
                    assert_eq!((error.field.as_str(), error.got), ("precision", precision.to_string()));
                    assert!(error.expected.starts_with(&format!("one that {isa} has instructions for (f32")));
                }
            }
        }
    }
}
