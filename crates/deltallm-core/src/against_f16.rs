//! Whether a planned cache is worth having: its bytes beside those of a dense cache in f16.

use std::fmt;

use crate::{
    codes_from::first_block_from,
    footprint::{CachePlan, Footprint, KeyPlan},
    store::{BLOCK_TOKENS, KvStore},
};

/// A planned cache beside a dense one in f16, at one length.
///
/// Beside a window the stores that quantise are never larger ([`CachePlan::codes_from`]). A float store holds window and sinks twice, exactly
/// and coded, and keys that move by more than their thresholds at every token take more than the keys themselves; a cache without
/// a window has room for a whole block from the first token on. What holds is known before anything is cached.
///
/// ```
/// use deltallm_core::{CachePlan, KeyPlan, KvStore};
///
/// let keys = KeyPlan::Delta { zero_fraction: 0.6, wide: 0.1, escapes: 0.1, window: 64, sinks: 4 };
/// let compact = CachePlan::new(3, 64, KvStore::Compact, keys);
/// assert!(compact.against_f16(4096).is_always_smaller());
/// assert!(compact.against_f16(100).to_string().ends_with("the same, because so short a context is held in f16"));
///
/// let f16 = CachePlan::new(3, 64, KvStore::F16, keys);
/// let short = f16.against_f16(100).to_string();
/// assert!(short.ends_with("larger, because window and sinks are held twice"), "{short}");
/// let from = f16.smaller_than_f16_from().expect("these keys rest");
/// assert!((100..1000).contains(&from) && f16.against_f16(from).is_smaller());
/// assert!(!f16.against_f16(4096).is_always_smaller()); // keys might move more than planned
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgainstF16 {
    /// Tokens in the cache.
    pub tokens: usize,
    /// The plan.
    pub planned: Footprint,
    /// The plan if all channels of all keys have to be sent, and no code holds what they are.
    pub most: Footprint,
    /// A dense cache in f16.
    pub f16: Footprint,
    /// From so many tokens on the cache [holds codes](CachePlan::codes_from).
    pub codes_from: usize,
}

impl AgainstF16 {
    /// Whether the plan takes fewer bytes.
    pub fn is_smaller(&self) -> bool {
        self.planned.total() < self.f16.total()
    }

    /// Whether it does whatever the keys are like.
    pub fn is_always_smaller(&self) -> bool {
        self.most.total() < self.f16.total()
    }
}

/// `27392 bytes for 64 tokens, 16384 in a dense f16 cache: larger, because window and sinks are held twice`
impl fmt::Display for AgainstF16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, planned, f16, codes_from, .. } = self;
        let (bytes, dense) = (planned.total(), f16.total());
        write!(f, "{bytes} bytes for {tokens} tokens, {dense} in a dense f16 cache: ")?;
        f.write_str(if bytes < dense {
            "smaller"
        } else if bytes == dense && tokens < codes_from {
            "the same, because so short a context is held in f16"
        } else if bytes == dense {
            "the same"
        } else if bytes.saturating_sub(planned.window) < dense {
            "larger, because window and sinks are held twice"
        } else if planned.keys > f16.keys {
            "larger, because the deltas of these keys take more than the keys"
        } else {
            "larger, because values are held in more bytes"
        })
    }
}

impl CachePlan {
    /// The bytes of `tokens` tokens beside those of a dense cache in f16.
    pub fn against_f16(&self, tokens: usize) -> AgainstF16 {
        let keys = match self.keys {
            KeyPlan::Delta { window, sinks, .. } => {
                let escapes = self.head_dim as f64;
                KeyPlan::Delta { zero_fraction: 0.0, wide: 1.0, escapes, window, sinks }
            }
            dense => dense,
        };
        let f16 = Self { store: KvStore::F16, keys: KeyPlan::Dense, ..*self };
        AgainstF16 {
            tokens,
            planned: self.footprint(tokens),
            most: Self { keys, ..*self }.footprint(tokens),
            f16: f16.footprint(tokens),
            codes_from: self.codes_from(),
        }
    }

    /// A number of tokens from which on the plan stays smaller than a dense cache in f16, if there is one below 2^40: where the first
    /// block of 64 tokens begins that fills the window and is smaller throughout.
    pub fn smaller_than_f16_from(&self) -> Option<usize> {
        let smaller = |block: usize| {
            let first = block * BLOCK_TOKENS + 1;
            (first..first + BLOCK_TOKENS).all(|tokens| self.against_f16(tokens).is_smaller())
        };
        let filled = match self.keys {
            KeyPlan::Delta { window, sinks, .. } => window.saturating_add(sinks) / BLOCK_TOKENS,
            KeyPlan::Dense => 0,
        };
        // Once the window is full every block of tokens brings the same bytes: what is smaller stays so.
        Some(first_block_from(filled, smaller)? * BLOCK_TOKENS + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(store: KvStore, zero_fraction: f64, escapes: f64, window: usize) -> CachePlan {
        let keys = KeyPlan::Delta { zero_fraction, wide: 0.1, escapes, window, sinks: 4 };
        CachePlan::new(3, 64, store, keys)
    }

    #[test]
    fn from_the_length_that_is_told_the_plan_stays_smaller() {
        for store in KvStore::ALL {
            for zero_fraction in [0.2, 0.45, 0.6, 0.9] {
                for window in [1, 64, 100, 1000] {
                    let plan = plan(store, zero_fraction, 0.1, window);
                    let from = plan.smaller_than_f16_from();
                    assert_eq!(
                        from.is_none(),
                        store == KvStore::F32 || store == KvStore::F16 && from.is_none()
                    );
                    let Some(from) = from else { continue };
                    assert!(
                        (from..from + 5000).all(|tokens| plan.against_f16(tokens).is_smaller()),
                        "{plan:?}"
                    );
                    // It is not said too late: a block before there is a length at which it is larger, or the window is not full.
                    let before = from.saturating_sub(BLOCK_TOKENS).max(1)..from;
                    let full = from > window + 4 + BLOCK_TOKENS;
                    assert!(!full || before.into_iter().any(|tokens| !plan.against_f16(tokens).is_smaller()));
                }
            }
        }
    }

    #[test]
    fn the_reason_is_told() {
        let says = |plan: CachePlan, tokens| plan.against_f16(tokens).to_string();
        let compact = |zero_fraction, escapes| plan(KvStore::Compact, zero_fraction, escapes, 64);
        assert!(says(compact(0.6, 0.1), 4096).ends_with("smaller"));
        assert!(says(compact(0.6, 0.1), 64).ends_with("the same, because so short a context is held in f16"));
        let hybrid = |zero_fraction, window| plan(KvStore::F16, zero_fraction, 0.0, window);
        assert!(says(hybrid(0.8, 64), 100).ends_with("larger, because window and sinks are held twice"));
        let restless = hybrid(0.0, 64);
        assert!(
            says(restless, 4096)
                .ends_with("larger, because the deltas of these keys take more than the keys")
        );
        assert_eq!(restless.smaller_than_f16_from(), None);
        let f32 = CachePlan::new(3, 64, KvStore::F32, KeyPlan::Dense);
        assert!(says(f32, 100).contains("larger, because"));
        assert!(says(CachePlan::new(3, 64, KvStore::F16, KeyPlan::Dense), 100).ends_with("the same"));
    }
}
