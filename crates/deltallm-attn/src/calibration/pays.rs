//! Where hybrid attention pays, and where a layer had better be dense.

use deltallm_core::{KvStore, SparsityStats};

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

/// From prompts of how many tokens on a layer gains time, `None` if it never gains enough; `skips` says whether values are
/// skipped in any layer of the model.
pub(super) fn pays_from(stats: &SparsityStats, skips: bool) -> Option<usize> {
    let total = stats.total();
    if !skips {
        // Scores are half of the time of attention.
        let far = 0.5 * (1.0 - total.exact_share());
        let gain = far * (1.0 - SPARSE_COST * (1.0 - total.zero_fraction()));
        return (gain >= LEAST_GAIN).then_some(EXACT_PROMPT);
    }
    let gain = SKIPPING * total.values_skipped();
    let tokens = || (REACH / (1.0 - OVERHEAD / gain)).ceil() as usize;
    (gain - OVERHEAD >= LEAST_GAIN).then(|| tokens().next_multiple_of(64))
}

/// The store of a layer, where those of the others differ: one that quantises must pay for itself.
pub(super) fn layer_store(store: KvStore, stats: &SparsityStats) -> Option<KvStore> {
    let exact = KvStore::from(store.exact());
    let pays = stats.total().values_skipped() >= LEAST_SKIPPED;
    (store != exact).then_some(if pays { store } else { exact })
}

#[cfg(test)]
mod tests {
    use deltallm_core::HeadSparsity;

    use super::*;

    #[test]
    fn without_skipping_zeros_must_pay() {
        let from = |nonzeros| {
            let counts =
                HeadSparsity { elements: 100, nonzeros, pairs: 100, exact_pairs: 20, skipped_values: 0 };
            pays_from(&SparsityStats::new(vec![counts; 2]), false)
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
            pays_from(&SparsityStats::new(vec![counts]), true)
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
