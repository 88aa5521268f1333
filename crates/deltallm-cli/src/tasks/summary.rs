//! All examples of a run together.

use std::collections::BTreeMap;

use anyhow::{bail, ensure};
use deltallm::core::HeadSparsity;
use serde_json::{Map, Value, json};

use super::{Estimate, ExampleResult, Lengths, Outcome, Scored, Unscorable};
use crate::Comparison;

/// The numbers of a task.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Names and values of the metrics, the most important one first.
    pub metrics: Vec<(&'static str, Estimate)>,
    /// Beside exact attention, if that was compared.
    pub dense: Option<DenseSummary>,
    /// Tokens scored or generated.
    pub tokens: usize,
    /// Of all sequences.
    pub lengths: Lengths,
    /// Generated answers that reached the limit of their length.
    pub unfinished: usize,
    /// Of all layers, heads and sequences.
    pub sparsity: HeadSparsity,
    /// Of these, what came of prompts.
    pub prompts: HeadSparsity,
    /// Examples that are in no other number here, by what they lack.
    pub skipped: BTreeMap<Unscorable, usize>,
    /// The first of them, counted from 0.
    pub first_skipped: Option<usize>,
}

/// A run beside exact attention.
#[derive(Debug, Clone)]
pub struct DenseSummary {
    /// As in [`Summary`].
    pub metrics: Vec<(&'static str, Estimate)>,
    /// This run less exact attention, example by example.
    pub differences: Vec<(&'static str, Estimate)>,
    /// Over the positions scored.
    pub comparison: Comparison,
    /// Examples with another prediction.
    pub flips: usize,
    /// As in [`Summary`].
    pub unfinished: usize,
}

impl Summary {
    /// Sums up examples whose metrics have these names.
    ///
    /// # Errors
    /// When none has been scored. When an example has other metrics, or only some have been compared: they are not of one run.
    pub fn new(names: &[&'static str], results: &[Scored]) -> anyhow::Result<Self> {
        let mut skipped = BTreeMap::new();
        for why in results.iter().filter_map(|result| result.as_ref().err()) {
            *skipped.entry(*why).or_default() += 1;
        }
        let examples: Vec<&ExampleResult> = results.iter().flatten().collect();
        let first = results.iter().find_map(|result| result.as_ref().err());
        if let (true, Some(why)) = (examples.is_empty(), first) {
            bail!(
                "expected an example that can be scored, got {} that cannot: in the first, {why}",
                results.len()
            );
        }
        let runs: Vec<&Outcome> = examples.iter().map(|example| &example.run).collect();
        let dense: Vec<&Outcome> = examples.iter().filter_map(|example| example.dense.as_ref()).collect();
        let metrics = runs.iter().chain(&dense).all(|outcome| outcome.metrics.len() == names.len());
        ensure!(
            metrics && (dense.is_empty() || dense.len() == runs.len()),
            "expected results with {} metrics each, got others: is the log of --resume whole?",
            names.len()
        );
        let mut lengths = Lengths::default();
        let [mut sparsity, mut prompts] = [HeadSparsity::default(); 2];
        let mut comparison = Comparison::default();
        for example in &examples {
            lengths.merge(&example.lengths);
            sparsity += example.sparsity;
            prompts += example.prompt;
            example.comparison.iter().for_each(|more| comparison += *more);
        }
        let unfinished = |outcomes: &[&Outcome]| outcomes.iter().filter(|o| o.unfinished).count();
        let estimate = |value: &dyn Fn(usize, usize) -> f64| {
            let of =
                |metric| Estimate::of(&(0..examples.len()).map(|i| value(i, metric)).collect::<Vec<_>>());
            names.iter().enumerate().map(|(metric, name)| (*name, of(metric))).collect::<Vec<_>>()
        };
        Ok(Self {
            metrics: estimate(&|i, metric| runs[i].metrics[metric]),
            dense: (!dense.is_empty()).then(|| DenseSummary {
                metrics: estimate(&|i, metric| dense[i].metrics[metric]),
                differences: estimate(&|i, metric| runs[i].metrics[metric] - dense[i].metrics[metric]),
                comparison,
                flips: runs
                    .iter()
                    .zip(&dense)
                    .filter(|(run, dense)| run.prediction != dense.prediction)
                    .count(),
                unfinished: unfinished(&dense),
            }),
            tokens: examples.iter().map(|example| example.tokens).fold(0, usize::saturating_add),
            lengths,
            unfinished: unfinished(&runs),
            sparsity,
            prompts,
            skipped,
            first_skipped: results.iter().position(Result::is_err),
        })
    }

    /// Examples that were not scored.
    pub fn skipped(&self) -> usize {
        self.skipped.values().sum()
    }

    /// Mean length of a sequence, in tokens.
    pub fn mean_tokens(&self) -> f64 {
        self.lengths.sum as f64 / self.lengths.sequences as f64
    }

    /// The fields of the JSON report.
    pub fn json(&self) -> Map<String, Value> {
        let mut fields = metrics_json(&self.metrics);
        fields.insert("mean_tokens".into(), json!(self.mean_tokens()));
        fields.insert("longest_tokens".into(), json!(self.lengths.longest));
        fields.insert("sequences".into(), json!(self.lengths.sequences));
        fields.insert("truncated".into(), json!(self.lengths.truncated));
        fields.insert("unfinished".into(), json!(self.unfinished));
        let reasons = self.skipped.iter().map(|(why, examples)| (why.name().to_owned(), json!(examples)));
        fields.insert("skipped_examples".into(), json!(self.skipped()));
        fields.insert("skipped_reasons".into(), reasons.collect::<Map<_, _>>().into());
        if let Some(dense) = &self.dense {
            let mut nested = metrics_json(&dense.metrics);
            nested.insert("unfinished".into(), json!(dense.unfinished));
            fields.insert("dense".into(), nested.into());
            fields.insert("kl".into(), json!(dense.comparison.kl()));
            fields.insert("top1_agreement".into(), json!(dense.comparison.top1_agreement()));
            fields.insert("flips".into(), json!(dense.flips));
            for (name, difference) in &dense.differences {
                fields.insert(format!("{name}_difference"), json!(difference.mean));
                fields.insert(format!("{name}_difference_standard_error"), json!(difference.standard_error));
            }
        }
        fields
    }
}

/// `standard_error` is the first metric's.
fn metrics_json(metrics: &[(&'static str, Estimate)]) -> Map<String, Value> {
    let mut fields = Map::new();
    for (index, (name, estimate)) in metrics.iter().enumerate() {
        let error = if index == 0 { "standard_error".into() } else { format!("{name}_standard_error") };
        fields.insert((*name).into(), json!(estimate.mean));
        fields.insert(error, json!(estimate.standard_error));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(run: (&str, f64), dense: (&str, f64)) -> Scored {
        let outcome = |(prediction, value): (&str, f64)| Outcome {
            prediction: prediction.into(),
            metrics: vec![value],
            log_likelihoods: Vec::new(),
            unfinished: false,
        };
        let mut lengths = Lengths::default();
        lengths.add(10, false);
        lengths.add(30, true);
        Ok(ExampleResult {
            run: outcome(run),
            dense: Some(outcome(dense)),
            comparison: Some(Comparison::default()),
            tokens: 3,
            lengths,
            sparsity: HeadSparsity::default(),
            prompt: HeadSparsity::default(),
        })
    }

    #[test]
    fn differences_are_paired() {
        let examples = [
            example(("0", 1.0), ("0", 1.0)),
            example(("1", 0.0), ("2", 0.0)), // both wrong, but not the same
            example(("0", 0.0), ("1", 1.0)),
            example(("1", 1.0), ("1", 1.0)),
        ];
        let summary = Summary::new(&["accuracy"], &examples).unwrap();
        let json = summary.json();
        assert_eq!((&json["accuracy"], &json["dense"]["accuracy"]), (&json!(0.5), &json!(0.75)));
        assert_eq!((&json["flips"], &json["accuracy_difference"]), (&json!(2), &json!(-0.25)));
        // Differences 0, 0, -1, 0: less spread than the errors of both means suggest.
        assert_eq!(json["accuracy_difference_standard_error"], json!(0.25));
        assert_eq!((&json["mean_tokens"], &json["longest_tokens"]), (&json!(20.0), &json!(30)));
        assert_eq!((summary.tokens, &json["sequences"], &json["truncated"]), (12, &json!(8), &json!(4)));
    }

    #[test]
    fn results_of_several_runs_are_refused() {
        let examples = [example(("0", 1.0), ("0", 1.0)), example(("1", 0.0), ("2", 0.0))];
        assert!(Summary::new(&["accuracy", "accuracy_norm"], &examples).is_err());
        let [first, mut second] = examples;
        second.as_mut().unwrap().dense = None;
        assert!(Summary::new(&["accuracy"], &[first, second]).is_err());
    }

    #[test]
    fn examples_that_cannot_be_scored_are_counted_by_reason_and_in_no_metric() {
        let good = || example(("0", 1.0), ("0", 0.0));
        let results =
            [good(), Err(Unscorable::TooLong), Err(Unscorable::NoTokens), good(), Err(Unscorable::NoTokens)];
        let summary = Summary::new(&["accuracy"], &results).unwrap();
        let json = summary.json();
        assert_eq!(
            (&json["accuracy"], &json["skipped_examples"], summary.first_skipped),
            (&json!(1.0), &json!(3), Some(1))
        );
        assert_eq!(json["skipped_reasons"], json!({"no_tokens": 2, "too_long": 1}));
        assert_eq!(json["sequences"], 4);
        let error = Summary::new(&["accuracy"], &results[1..3]).unwrap_err().to_string();
        assert!(error.contains("got 2 that cannot") && error.contains("longer than the context"), "{error}");
    }
}
