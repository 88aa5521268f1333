//! Thresholds that keep every score within a bound.

use std::sync::Arc;

use crate::{CoreError, HeadThresholds};

/// A limit on the error of every score, kept by construction: `|s(m,t) - scale q_m . k_t| <= epsilon`.
///
/// The error is at most `sum_j |scale q_m[j]| theta[j]` (`docs/method.md`, equation 3), so with limits `L[j]` on the queries the
/// thresholds `theta[j] = epsilon / (head_dim L[j])` keep it. Kernels check the queries that come and refuse one whose
/// bound is larger. In a cache of 16-bit elements the rounding of transmitted keys comes on top, as in dense attention.
///
/// ```
/// use deltallm_core::{ErrorBound, QueryLimits, ThresholdPolicy};
///
/// let limits = QueryLimits::new([1, 1, 2], vec![1.0, 4.0])?; // one layer, one kv head, two channels
/// let policy = ThresholdPolicy::ErrorBound(ErrorBound::new(0.8, limits)?);
/// assert_eq!(policy.for_layer(0, 1, 2)?[0].start(), [0.4, 0.1]);
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorBound {
    epsilon: f32,
    limits: Arc<QueryLimits>,
}

impl ErrorBound {
    /// Scores are to be within `epsilon` nats.
    ///
    /// # Errors
    /// [`CoreError::ScoreBound`] for an epsilon that is not a finite number above zero.
    pub fn new(epsilon: f32, limits: QueryLimits) -> Result<Self, CoreError> {
        if !(epsilon.is_finite() && epsilon > 0.0) {
            return Err(CoreError::ScoreBound { what: "score error bound", got: epsilon });
        }
        Ok(Self { epsilon, limits: Arc::new(limits) })
    }

    /// The bound, in nats.
    pub fn epsilon(&self) -> f32 {
        self.epsilon
    }

    /// Thresholds of one layer, one per kv head.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] when the limits have another shape.
    pub fn for_layer(
        &self,
        layer: usize,
        kv_heads: usize,
        head_dim: usize,
    ) -> Result<Vec<HeadThresholds>, CoreError> {
        let limits = self.limits.layer(layer, kv_heads, head_dim)?;
        // A channel that no query looks at may be as wrong as it likes, within what f32 can add up.
        let threshold = |limit: &f32| (self.epsilon / (head_dim as f32 * limit)).min(1e6);
        let heads = limits.chunks_exact(head_dim);
        Ok(heads.map(|head| head.iter().map(threshold).collect::<Vec<_>>().into()).collect())
    }
}

/// The largest `|scale q[j]|` that queries can reach, `[layers, kv_heads, head_dim]`: over all query heads that share the kv
/// head, after RoPE.
///
/// A norm before the projection bounds them from the weights alone (`Model::query_limits` of `deltallm-models`).
///
/// ```
/// use deltallm_core::QueryLimits;
///
/// QueryLimits::new([1, 2, 2], vec![1.0, 4.0, 0.5, 0.0])?; // a channel that no query looks at has 0
/// assert!(QueryLimits::new([1, 2, 2], vec![1.0]).is_err());
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct QueryLimits {
    shape: [usize; 3],
    limits: Vec<f32>,
}

impl QueryLimits {
    /// Limits of all layers in row-major order.
    ///
    /// # Errors
    /// [`CoreError::ProfileShape`] for a wrong count, [`CoreError::ScoreBound`] for a limit that is negative or not finite.
    pub fn new(shape: [usize; 3], limits: Vec<f32>) -> Result<Self, CoreError> {
        let expected = shape.iter().fold(1_usize, |product, size| product.saturating_mul(*size));
        if limits.len() != expected || expected == 0 {
            let (what, got) = ("query limits", limits.len());
            return Err(CoreError::ProfileShape { what, expected: expected.max(1), got });
        }
        match limits.iter().find(|limit| !(limit.is_finite() && **limit >= 0.0)) {
            Some(&got) => Err(CoreError::ScoreBound { what: "query limit", got }),
            None => Ok(Self { shape, limits }),
        }
    }

    fn layer(&self, layer: usize, kv_heads: usize, head_dim: usize) -> Result<&[f32], CoreError> {
        let wanted = [self.shape[0].max(layer + 1), kv_heads, head_dim];
        for ((what, expected), got) in
            ["layers", "kv_heads", "head_dim"].into_iter().zip(wanted).zip(self.shape)
        {
            if expected != got {
                return Err(CoreError::ProfileShape { what, expected, got });
            }
        }
        let size = kv_heads * head_dim;
        Ok(&self.limits[layer * size..(layer + 1) * size])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeltaEncoder, ElementType};

    #[test]
    fn no_score_is_further_off_than_the_bound() {
        let limits: Vec<f32> = (0..16).map(|j| 0.1 + j as f32).collect();
        let bound = ErrorBound::new(0.5, QueryLimits::new([1, 1, 16], limits.clone()).unwrap()).unwrap();
        let head = bound.for_layer(0, 1, 16).unwrap().remove(0);
        let mut encoder = DeltaEncoder::new(head, ElementType::F32).unwrap();
        let mut largest = 0.0_f32;
        for t in 0..2000 {
            let key: Vec<f32> = (0..16).map(|j| (0.01 * (t * (j + 1)) as f32).sin()).collect();
            encoder.encode(&key).unwrap();
            // The worst query within the limits.
            let error = |(j, k): (usize, &f32)| (k - encoder.reconstruction()[j]).abs() * limits[j];
            largest = largest.max(key.iter().enumerate().map(error).sum());
        }
        assert!(largest <= 0.5 * 1.0001 && largest > 0.1, "{largest}");
    }

    #[test]
    fn a_channel_that_no_query_sees_costs_nothing() {
        let bound = ErrorBound::new(0.5, QueryLimits::new([1, 1, 2], vec![0.0, 1.0]).unwrap()).unwrap();
        assert_eq!(bound.for_layer(0, 1, 2).unwrap()[0].start(), [1e6, 0.25]);
    }

    #[test]
    fn bad_bounds_and_limits_are_refused() {
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let limits = QueryLimits::new([1, 1, 1], vec![1.0]).unwrap();
            assert!(matches!(ErrorBound::new(bad, limits), Err(CoreError::ScoreBound { .. })));
        }
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            let error = QueryLimits::new([1, 1, 1], vec![bad]).unwrap_err();
            assert!(matches!(error, CoreError::ScoreBound { .. }), "{error}");
        }
        assert!(QueryLimits::new([usize::MAX, 2, 2], vec![1.0]).is_err());
        assert!(QueryLimits::new([0, 1, 1], vec![]).is_err());
        let bound = ErrorBound::new(1.0, QueryLimits::new([2, 1, 1], vec![1.0; 2]).unwrap()).unwrap();
        assert!(matches!(bound.for_layer(2, 1, 1), Err(CoreError::ProfileShape { what: "layers", .. })));
        assert!(matches!(bound.for_layer(0, 2, 1), Err(CoreError::ProfileShape { what: "kv_heads", .. })));
    }
}
