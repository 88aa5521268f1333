//! Questions about a paragraph, some of which have no answer in it.

use anyhow::ensure;
use ndarray::Axis;

use super::{ANSWER_TOKENS, Answer, ExampleResult, Lengths, Outcome, Setup, answer_all, exact_match, f1};
use crate::{Comparison, score_rows};

/// A question of SQuAD 2.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Title of the article.
    pub title: String,
    /// The paragraph.
    pub context: String,
    /// The question.
    pub question: String,
    /// Answers that count as right; none if the paragraph does not answer the question.
    pub golds: Vec<String>,
}

impl Question {
    /// The names of the metrics, both in 0..=1.
    pub const METRICS: &[&str] = &["f1", "exact_match"];

    /// The prompt of lm-evaluation-harness's `squadv2`, without examples.
    pub fn prompt(&self) -> String {
        format!(
            "Title: {}\n\nBackground: {}\n\nQuestion: {}\n\nAnswer:",
            self.title, self.context, self.question
        )
    }

    fn judge(&self, answer: &Answer) -> Outcome {
        Outcome {
            prediction: answer.text.clone(),
            metrics: vec![f1(&answer.text, &self.golds), exact_match(&answer.text, &self.golds)],
            log_likelihoods: Vec::new(),
            unfinished: answer.unfinished,
        }
    }
}

/// Answers questions together. A prompt that leaves no room for [`ANSWER_TOKENS`] tokens loses its beginning. `progress` is
/// told how many are done.
///
/// The comparison is of the distributions after the prompt: later ones depend on what each kernel has written.
///
/// # Errors
/// For a context without room for an answer, and a failing model.
pub fn answer_questions(
    setup: &Setup,
    questions: &[Question],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<ExampleResult>> {
    ensure!(
        setup.context > ANSWER_TOKENS,
        "expected a context of more than {ANSWER_TOKENS} tokens, the room for an answer, got {}",
        setup.context
    );
    let most = setup.context - ANSWER_TOKENS;
    let mut prompts = Vec::new();
    let mut lengths = Vec::new();
    for question in questions {
        let mut tokens = setup.model.encode(&question.prompt())?;
        let surplus = tokens.len().saturating_sub(most);
        tokens.drain(..surplus);
        prompts.push(tokens);
        lengths.push(surplus > 0);
    }
    // With a comparison the first half of the work is not the end of it.
    let runs = answer_all(setup.model, &setup.kernel, &prompts, &mut |done| {
        progress(if setup.dense.is_some() { done / 2 } else { done });
    })?;
    let dense = match &setup.dense {
        Some(dense) => {
            let mut second = |done| progress((questions.len() + done) / 2);
            Some(answer_all(setup.model, dense, &prompts, &mut second)?)
        }
        None => None,
    };
    let result = |(index, (question, run)): (usize, (&Question, Answer))| {
        let dense = dense.as_ref().map(|dense| &dense[index]);
        let mut sequence = Lengths::default();
        sequence.add(prompts[index].len() + run.tokens, lengths[index]);
        ExampleResult {
            run: question.judge(&run),
            dense: dense.map(|dense| question.judge(dense)),
            comparison: dense.map(|dense| compare(&run, dense)),
            tokens: run.tokens,
            lengths: sequence,
            sparsity: run.sparsity,
        }
    };
    Ok(questions.iter().zip(runs).enumerate().map(result).collect())
}

/// The first tokens' distributions.
fn compare(run: &Answer, dense: &Answer) -> Comparison {
    let mut comparison = Comparison::default();
    let rows = [dense, run].map(|answer| answer.first_logits.view().insert_axis(Axis(0)));
    // Which token came does not matter here: there is none that both must score.
    let [dense_scores, scores] = [0, 1].map(|i: usize| score_rows(rows[i], &[0]));
    comparison.add((rows[0], &dense_scores), (rows[1], &scores));
    comparison
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_the_harness_s() {
        let question = Question {
            title: "Normans".into(),
            context: "Rollo led them.".into(),
            question: "Who led them?".into(),
            golds: vec!["Rollo".into()],
        };
        let expected = "Title: Normans\n\nBackground: Rollo led them.\n\nQuestion: Who led them?\n\nAnswer:";
        assert_eq!(question.prompt(), expected);
    }
}
