//! Questions about a paragraph, some of which have no answer in it.

use anyhow::ensure;

use super::{
    ANSWER_TOKENS, Answer, ExampleResult, Lengths, Outcome, Scored, Setup, answer_all, exact_match, f1,
};

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
/// The comparison is over every token that exact attention writes: the kernel that is measured reads its text too, since their own texts
/// part.
///
/// # Errors
/// For a context without room for an answer, and a failing model.
pub fn answer_questions(
    setup: &Setup,
    questions: &[Question],
    progress: &mut dyn FnMut(usize),
) -> anyhow::Result<Vec<Scored>> {
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
    let runs = answer_all(setup.model, &setup.kernel, None, &prompts, &mut |done| {
        progress(if setup.dense.is_some() { done / 2 } else { done });
    })?;
    let dense = match &setup.dense {
        Some(dense) => {
            let mut second = |done| progress((questions.len() + done) / 2);
            Some(answer_all(setup.model, dense, Some(&setup.kernel), &prompts, &mut second)?)
        }
        None => None,
    };
    let result = |(index, (question, run)): (usize, (&Question, Answer))| {
        let dense = dense.as_ref().map(|dense| &dense[index]);
        let mut sequence = Lengths::default();
        sequence.add(prompts[index].len() + run.tokens, lengths[index]);
        Ok(ExampleResult {
            run: question.judge(&run),
            dense: dense.map(|dense| question.judge(dense)),
            comparison: dense.and_then(|dense| dense.follower),
            tokens: run.tokens,
            lengths: sequence,
            sparsity: run.sparsity,
            prompt: run.prompt,
        })
    };
    Ok(questions.iter().zip(runs).enumerate().map(result).collect())
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
