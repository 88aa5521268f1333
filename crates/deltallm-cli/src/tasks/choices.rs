//! Which of several continuations, or of several contexts, is the most probable.

use super::{LikelihoodExample, Outcome, Pair, RequestScore};
use crate::measure::argmax;

/// An example of the tasks `choices` (one context, several continuations) and `schema` (several contexts, one
/// continuation).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoiceExample {
    /// At least one.
    pub options: Vec<Pair>,
    /// Index of the right one, less than their number.
    pub gold: usize,
}

impl ChoiceExample {
    /// The names of the metrics.
    pub const METRICS: &[&str] = &["accuracy", "accuracy_norm"];
}

impl LikelihoodExample for ChoiceExample {
    fn pairs(&self) -> &[Pair] {
        &self.options
    }

    fn right(&self) -> &Pair {
        &self.options[self.gold]
    }

    /// The highest log-likelihood wins, in `accuracy_norm` the highest one for each byte of the continuation (without its
    /// delimiter). The first of several wins.
    fn judge(&self, scores: &[RequestScore]) -> Outcome {
        let sums: Vec<f64> = scores.iter().map(|score| score.log_likelihood).collect();
        let per_byte: Vec<f64> =
            sums.iter().zip(&self.options).map(|(sum, o)| sum / o.continuation.len() as f64).collect();
        let right = |index: usize| f64::from(u8::from(index == self.gold));
        let best = argmax(&sums).unwrap_or_default();
        Outcome {
            prediction: best.to_string(),
            metrics: vec![right(best), right(argmax(&per_byte).unwrap_or_default())],
            log_likelihoods: sums,
            unfinished: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(log_likelihoods: &[f64], continuations: &[&str], gold: usize) -> Outcome {
        let options = continuations.iter().map(|c| Pair { context: "x".into(), continuation: (*c).into() });
        let scores =
            log_likelihoods.iter().map(|&log_likelihood| RequestScore { log_likelihood, greedy: false });
        ChoiceExample { options: options.collect(), gold }.judge(&scores.collect::<Vec<_>>())
    }

    #[test]
    fn long_answers_have_a_chance_once_divided_by_their_bytes() {
        let outcome = judge(&[-4.0, -6.0], &["no", "certainly"], 1);
        assert_eq!((outcome.prediction.as_str(), outcome.metrics), ("0", vec![0.0, 1.0]));
        // Bytes, not characters: -4/4 against -3/2.
        assert_eq!(judge(&[-4.0, -3.0], &["éé", "no"], 0).metrics, [0.0, 1.0]);
    }

    #[test]
    fn the_first_of_equals_wins() {
        assert_eq!(judge(&[-2.0, -1.0, -1.0], &["a", "b", "c"], 1).metrics, [1.0, 1.0]);
    }
}
