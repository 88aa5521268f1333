//! Counts of what was saved.

use deltallm_core::{HeadSparsity, SparsityStats};
use pyo3::prelude::*;

use crate::error::value;

/// What delta coding and value skipping save, over the kv heads of one layer; `heads` has them one by one. `+` adds the counts of another run
/// of the same layer, or of another layer.
#[pyclass(module = "deltallm", frozen, eq)]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stats(pub(crate) SparsityStats);

impl Stats {
    fn total(&self) -> HeadSparsity {
        self.0.total()
    }
}

#[pymethods]
impl Stats {
    /// One of these for each kv head.
    #[getter]
    fn heads(&self) -> Vec<Self> {
        self.0.heads().iter().map(|head| Self(SparsityStats::new(vec![*head]))).collect()
    }

    /// Share of the entries of the delta matrix that are zero.
    #[getter]
    fn zero_fraction(&self) -> f64 {
        self.total().zero_fraction()
    }

    /// Sparsity as the paper counts it: `zero_fraction` times the share of pairs that are not exact.
    #[getter]
    fn sparsity(&self) -> f64 {
        self.total().sparsity()
    }

    /// Share of the pairs of a query and a key that are scored exactly.
    #[getter]
    fn exact_share(&self) -> f64 {
        self.total().exact_share()
    }

    /// Share of the pairs that are not exact whose value was skipped.
    #[getter]
    fn values_skipped(&self) -> f64 {
        self.total().values_skipped()
    }

    fn __add__(&self, other: &Self) -> PyResult<Self> {
        let mut sum = self.0.clone();
        sum.merge(&other.0).map_err(value)?;
        Ok(Self(sum))
    }

    fn __repr__(&self) -> String {
        format!(
            "Stats(zero_fraction={:.3}, sparsity={:.3}, values_skipped={:.3}, {} kv heads)",
            self.zero_fraction(),
            self.sparsity(),
            self.values_skipped(),
            self.0.heads().len()
        )
    }
}
