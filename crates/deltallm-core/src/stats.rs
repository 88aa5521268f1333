//! What delta coding and value skipping saved.

use std::ops::AddAssign;

use crate::{
    error::CoreError,
    snapshot::{SnapshotError, SnapshotReader, SnapshotWriter},
};

/// Counts of one kv head (and of the query heads that share it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HeadSparsity {
    /// Entries of the delta matrix: tokens times channels. Zero where keys are not delta-coded.
    pub elements: u64,
    /// Entries that were transmitted.
    pub nonzeros: u64,
    /// Causal (query, key) pairs, counted once per query head.
    pub pairs: u64,
    /// Pairs scored with the exact key: window and sinks, or everything in dense attention.
    pub exact_pairs: u64,
    /// Far pairs whose value was skipped.
    pub skipped_values: u64,
}

impl HeadSparsity {
    /// Adds the counts to a snapshot.
    pub fn save(&self, writer: &mut SnapshotWriter) {
        let Self { elements, nonzeros, pairs, exact_pairs, skipped_values } = *self;
        [elements, nonzeros, pairs, exact_pairs, skipped_values].into_iter().for_each(|n| writer.number(n));
    }

    /// The counts that are next in a snapshot.
    ///
    /// # Errors
    /// [`SnapshotError::Length`] at its end, [`SnapshotError::Invalid`] for counts of more parts than the whole has.
    pub fn load(reader: &mut SnapshotReader) -> Result<Self, SnapshotError> {
        let [elements, nonzeros, pairs, exact_pairs, skipped_values] = [(); 5].map(|()| reader.number());
        let counts = Self {
            elements: elements?,
            nonzeros: nonzeros?,
            pairs: pairs?,
            exact_pairs: exact_pairs?,
            skipped_values: skipped_values?,
        };
        let far = counts.pairs.checked_sub(counts.exact_pairs);
        match far {
            Some(far) if counts.skipped_values <= far && counts.nonzeros <= counts.elements => Ok(counts),
            _ => Err(SnapshotError::Invalid {
                what: "pairs",
                expected: "counts that fit each other",
                got: counts.pairs,
            }),
        }
    }

    /// `zeros(delta) / numel(delta)`, in 0..=1.
    pub fn zero_fraction(&self) -> f64 {
        ratio(self.elements.saturating_sub(self.nonzeros), self.elements)
    }

    /// Share of causal pairs that were scored exactly, in 0..=1.
    pub fn exact_share(&self) -> f64 {
        ratio(self.exact_pairs, self.pairs)
    }

    /// The paper's sparsity: zero fraction times the share of pairs that are not exact.
    pub fn sparsity(&self) -> f64 {
        self.zero_fraction() * ratio(self.pairs.saturating_sub(self.exact_pairs), self.pairs)
    }

    /// Share of the far pairs (those not exact) whose value was skipped, in 0..=1.
    pub fn values_skipped(&self) -> f64 {
        ratio(self.skipped_values, self.pairs.saturating_sub(self.exact_pairs))
    }
}

impl AddAssign for HeadSparsity {
    /// Adds the counts of another head, layer or run; a sum that is too large stays at the largest number.
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.elements, other.elements),
            (&mut self.nonzeros, other.nonzeros),
            (&mut self.pairs, other.pairs),
            (&mut self.exact_pairs, other.exact_pairs),
            (&mut self.skipped_values, other.skipped_values),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sparsity per kv head, and in total.
///
/// ```
/// use deltallm_core::{HeadSparsity, SparsityStats};
///
/// let head = HeadSparsity { elements: 100, nonzeros: 40, pairs: 10, exact_pairs: 2, skipped_values: 4 };
/// let stats = SparsityStats::new(vec![head; 3]);
/// assert_eq!(stats.total().zero_fraction(), 0.6);
/// assert_eq!(stats.total().sparsity(), 0.6 * 0.8);
/// assert_eq!(stats.total().values_skipped(), 0.5);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SparsityStats {
    heads: Vec<HeadSparsity>,
}

impl SparsityStats {
    /// Statistics of these kv heads.
    pub fn new(heads: Vec<HeadSparsity>) -> Self {
        Self { heads }
    }

    /// Per kv head.
    pub fn heads(&self) -> &[HeadSparsity] {
        &self.heads
    }

    /// All heads together: every pair and every entry weighs the same.
    pub fn total(&self) -> HeadSparsity {
        let mut total = HeadSparsity::default();
        self.heads.iter().for_each(|head| total += *head);
        total
    }

    /// Adds `other` head by head (another run of the same layer, or another layer). Empty statistics take the shape of
    /// what they are merged with.
    ///
    /// # Errors
    /// [`CoreError::Heads`] when both have heads and their number differs.
    pub fn merge(&mut self, other: &Self) -> Result<(), CoreError> {
        if self.heads.is_empty() {
            self.heads.clone_from(&other.heads);
        } else if other.heads.len() == self.heads.len() {
            self.heads.iter_mut().zip(&other.heads).for_each(|(head, more)| *head += *more);
        } else if !other.heads.is_empty() {
            return Err(CoreError::Heads { expected: self.heads.len(), got: other.heads.len() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_counted_is_zero_and_not_nan() {
        let nothing = HeadSparsity::default();
        assert_eq!(nothing.zero_fraction(), 0.0);
        assert_eq!(nothing.sparsity(), 0.0);
        assert_eq!(nothing.values_skipped(), 0.0);
        assert_eq!(nothing.exact_share(), 0.0);
    }

    #[test]
    fn merging_equals_counting_together() {
        let one = HeadSparsity { elements: 10, nonzeros: 4, pairs: 6, exact_pairs: 3, skipped_values: 1 };
        let two = HeadSparsity { elements: 30, nonzeros: 6, pairs: 10, exact_pairs: 1, skipped_values: 2 };
        let mut stats = SparsityStats::default();
        stats.merge(&SparsityStats::new(vec![one, two])).unwrap();
        stats.merge(&SparsityStats::new(vec![two, one])).unwrap();
        assert_eq!(stats.heads()[0], stats.heads()[1]);
        assert_eq!(stats.total().zero_fraction(), 60.0 / 80.0);
        assert!(stats.merge(&SparsityStats::new(vec![one])).is_err());
    }
}
