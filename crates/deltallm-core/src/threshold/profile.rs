//! Calibrated thresholds.

use crate::{check::check_thresholds, error::CoreError, fingerprint::ModelFingerprint};

/// Calibrated thresholds, `[layers, kv_heads, head_dim]`, tied to the model they were made for.
///
/// ```
/// use deltallm_core::{ModelFingerprint, ThresholdProfile};
///
/// let model: ModelFingerprint = "00000000000000ff".parse()?;
/// let profile = ThresholdProfile::new(model, [2, 1, 3], vec![0.1, 0.2, 0.3, 0.4, 0.5, 0.6])?;
/// assert_eq!(profile.layer(1, 1, 3)?, [0.4, 0.5, 0.6]);
/// assert!(profile.check(ModelFingerprint(1), [2, 1, 3]).is_err()); // of another model
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ThresholdProfile {
    model: ModelFingerprint,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    thresholds: Vec<f32>,
}

impl ThresholdProfile {
    /// A profile of `layers * kv_heads * head_dim` thresholds in row-major order.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] for a wrong count, [`CoreError::Threshold`] for a negative or non-finite value.
    pub fn new(
        model: ModelFingerprint,
        [layers, kv_heads, head_dim]: [usize; 3],
        thresholds: Vec<f32>,
    ) -> Result<Self, CoreError> {
        let shape = |what, expected, got| Err(CoreError::ProfileShape { what, expected, got });
        for (what, size) in [("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)] {
            if size == 0 {
                return shape(what, 1, 0);
            }
        }
        let expected = layers.saturating_mul(kv_heads).saturating_mul(head_dim);
        if thresholds.len() != expected {
            return shape("thresholds", expected, thresholds.len());
        }
        check_thresholds(&thresholds)?;
        Ok(Self { model, layers, kv_heads, head_dim, thresholds })
    }

    /// The model the profile was made for.
    pub fn model(&self) -> ModelFingerprint {
        self.model
    }

    /// All thresholds, `[layers, kv_heads, head_dim]`.
    pub fn thresholds(&self) -> &[f32] {
        &self.thresholds
    }

    /// Dimensions: `[layers, kv_heads, head_dim]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.layers, self.kv_heads, self.head_dim]
    }

    /// Thresholds of one layer, `[kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] for a layer the profile does not have, or heads of another shape.
    pub fn layer(&self, layer: usize, kv_heads: usize, head_dim: usize) -> Result<&[f32], CoreError> {
        self.check_shape(self.layers.max(layer.saturating_add(1)), kv_heads, head_dim)?;
        let size = kv_heads * head_dim;
        Ok(&self.thresholds[layer * size..(layer + 1) * size])
    }

    /// Checks that the profile belongs to a model of this fingerprint and shape.
    ///
    /// # Errors
    /// [`CoreError::ProfileModel`] or [`CoreError::ProfileShape`], naming what was expected and what the profile has.
    pub fn check(
        &self,
        model: ModelFingerprint,
        [layers, kv_heads, head_dim]: [usize; 3],
    ) -> Result<(), CoreError> {
        if self.model != model {
            return Err(CoreError::ProfileModel { expected: model, got: self.model });
        }
        self.check_shape(layers, kv_heads, head_dim)
    }

    fn check_shape(&self, layers: usize, kv_heads: usize, head_dim: usize) -> Result<(), CoreError> {
        for (what, expected, got) in [
            ("layers", layers, self.layers),
            ("kv_heads", kv_heads, self.kv_heads),
            ("head_dim", head_dim, self.head_dim),
        ] {
            if expected != got {
                return Err(CoreError::ProfileShape { what, expected, got });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelFingerprint = ModelFingerprint(7);

    fn profile() -> ThresholdProfile {
        ThresholdProfile::new(MODEL, [2, 2, 3], (0..12).map(|i| i as f32).collect()).unwrap()
    }

    #[test]
    fn a_profile_is_cut_by_layer_and_head() {
        assert_eq!(profile().layer(0, 2, 3).unwrap(), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(profile().layer(1, 2, 3).unwrap(), [6., 7., 8., 9., 10., 11.]);
    }

    #[test]
    fn a_profile_for_another_shape_is_refused() {
        let profile = profile();
        for (layer, kv_heads, head_dim, what) in
            [(2, 2, 3, "layers"), (0, 3, 3, "kv_heads"), (0, 2, 4, "head_dim")]
        {
            match profile.layer(layer, kv_heads, head_dim) {
                Err(CoreError::ProfileShape { what: got, .. }) => assert_eq!(got, what),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_profile_for_another_model_is_refused() {
        let error = profile().check(ModelFingerprint(8), [2, 2, 3]).unwrap_err();
        assert_eq!(error, CoreError::ProfileModel { expected: ModelFingerprint(8), got: MODEL });
        assert!(error.to_string().contains("0000000000000008"), "{error}");
        profile().check(MODEL, [2, 2, 3]).unwrap();
    }

    #[test]
    fn bad_thresholds_are_refused() {
        for bad in [-0.5, f32::NAN, f32::INFINITY] {
            assert!(matches!(
                ThresholdProfile::new(MODEL, [1, 1, 2], vec![0.0, bad]),
                Err(CoreError::Threshold { index: 1, .. })
            ));
        }
        assert!(matches!(
            ThresholdProfile::new(MODEL, [1, 2, 3], vec![0.0; 5]),
            Err(CoreError::ProfileShape { what: "thresholds", expected: 6, got: 5 })
        ));
        assert!(ThresholdProfile::new(MODEL, [usize::MAX, 2, 3], vec![0.0; 6]).is_err());
    }
}
