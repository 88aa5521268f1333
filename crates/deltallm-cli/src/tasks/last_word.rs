//! Whether greedy decoding writes the continuation.

use super::{LikelihoodExample, Outcome, Pair, RequestScore};

/// An example of the task `last-word`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastWordExample {
    pair: [Pair; 1],
}

impl LastWordExample {
    /// The names of the metrics; `log_likelihood` is the continuation's, in nats.
    pub const METRICS: &[&str] = &["accuracy", "log_likelihood"];

    /// A text and its last word.
    pub fn new(context: String, continuation: String) -> Self {
        Self { pair: [Pair { context, continuation }] }
    }

    /// The final answer given the reference reasoning, from a record of GSM8K. (lm-evaluation-harness lets the model
    /// reason itself; this asks only for the last step, in the words of that data set.)
    pub fn from_reasoning(question: &str, reasoning: &str, answer: String) -> Self {
        Self::new(format!("Question: {question}\nAnswer: {reasoning}\n####"), answer)
    }
}

impl LikelihoodExample for LastWordExample {
    fn pairs(&self) -> &[Pair] {
        &self.pair
    }

    fn right(&self) -> &Pair {
        &self.pair[0]
    }

    /// Right if every token of the continuation is the most probable one.
    fn judge(&self, scores: &[RequestScore]) -> Outcome {
        let greedy = scores.iter().all(|score| score.greedy);
        let log_likelihood = scores.iter().map(|score| score.log_likelihood).sum();
        Outcome {
            prediction: if greedy { "right" } else { "wrong" }.into(),
            metrics: vec![f64::from(u8::from(greedy)), log_likelihood],
            log_likelihoods: vec![log_likelihood],
            unfinished: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_comes_before_the_answer() {
        let example = LastWordExample::from_reasoning("How many?", "Two and two.", "4".into());
        assert_eq!(example.pairs()[0].context, "Question: How many?\nAnswer: Two and two.\n####");
        assert_eq!(example.pairs()[0].continuation, "4");
    }

    #[test]
    fn only_the_whole_continuation_is_right() {
        let example = LastWordExample::new("a".into(), "b".into());
        let outcome = |greedy| example.judge(&[RequestScore { log_likelihood: -1.5, greedy }]);
        assert_eq!(outcome(true).metrics, [1.0, -1.5]);
        assert_eq!(outcome(false).metrics, [0.0, -1.5]);
    }
}
