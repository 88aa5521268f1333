//! How many values were skipped, and when.

use std::fmt;

use deltallm::core::HeadSparsity;
use serde::Serialize;

/// Shares of far pairs (those not exact) whose value was skipped. A query that decides alone, in decoding, skips far more than one of a
/// prompt, so one number for both says little.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SkippedValues {
    /// Of all far pairs.
    values_skipped: f64,
    /// Of those of prompts; `None` where there are none.
    values_skipped_prefill: Option<f64>,
    /// Of those of generated tokens; `None` where there are none.
    values_skipped_decode: Option<f64>,
}

impl SkippedValues {
    /// Of all, of which `prompt` came of the prompt.
    pub fn new(all: &HeadSparsity, prompt: &HeadSparsity) -> Self {
        let decode = HeadSparsity {
            elements: 0,
            nonzeros: 0,
            pairs: all.pairs.saturating_sub(prompt.pairs),
            exact_pairs: all.exact_pairs.saturating_sub(prompt.exact_pairs),
            skipped_values: all.skipped_values.saturating_sub(prompt.skipped_values),
        };
        let share = |part: &HeadSparsity| (part.pairs > part.exact_pairs).then(|| part.values_skipped());
        Self {
            values_skipped: all.values_skipped(),
            values_skipped_prefill: share(prompt),
            values_skipped_decode: share(&decode),
        }
    }
}

/// `values skipped 12.0 % of far pairs in the prompt, 40.0 % in decoding`
impl fmt::Display for SkippedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let parts =
            [(self.values_skipped_prefill, "in the prompt"), (self.values_skipped_decode, "in decoding")];
        let parts = parts.into_iter().filter_map(|(share, when)| Some(format!("{} {when}", percent(share?))));
        match parts.collect::<Vec<_>>() {
            none if none.is_empty() => f.write_str("no values to skip: every pair was exact"),
            parts => write!(f, "values skipped, of far pairs: {}", parts.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: u64, exact_pairs: u64, skipped_values: u64) -> HeadSparsity {
        HeadSparsity { elements: 0, nonzeros: 0, pairs, exact_pairs, skipped_values }
    }

    #[test]
    fn prompts_and_decoding_are_told_apart() {
        let both = SkippedValues::new(&pairs(200, 50, 60), &pairs(120, 20, 10));
        assert_eq!(both.values_skipped, 0.4);
        assert_eq!((both.values_skipped_prefill, both.values_skipped_decode), (Some(0.1), Some(1.0)));
        assert_eq!(
            both.to_string(),
            "values skipped, of far pairs: 10.0 % in the prompt, 100.0 % in decoding"
        );
        let prompt = SkippedValues::new(&pairs(120, 20, 10), &pairs(120, 20, 10));
        assert_eq!(prompt.values_skipped_decode, None);
        assert_eq!(prompt.to_string(), "values skipped, of far pairs: 10.0 % in the prompt");
        let exact = SkippedValues::new(&pairs(9, 9, 0), &pairs(9, 9, 0)).to_string();
        assert!(exact.contains("every pair was exact"), "{exact}");
    }
}
