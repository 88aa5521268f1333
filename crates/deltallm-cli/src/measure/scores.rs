//! Scores that are numbers.

use anyhow::ensure;
use ndarray::ArrayView2;

use super::{TokenScore, score_rows};

/// [`score_rows`], of a model that knows the tokens and whose logits do not overflow.
///
/// # Errors
/// For a token beyond the vocabulary, and for a log-likelihood that is not finite.
pub(crate) fn finite_scores(logits: ArrayView2<f32>, next: &[u32]) -> anyhow::Result<Vec<TokenScore>> {
    let vocabulary = logits.ncols();
    if let Some(token) = next.iter().find(|token| **token as usize >= vocabulary) {
        anyhow::bail!(
            "expected tokens below {vocabulary}, the size of the model's vocabulary, got {token}: the tokenizer is that of another model"
        );
    }
    let scores = score_rows(logits, next);
    ensure!(
        scores.iter().all(|score| score.log_likelihood.is_finite()),
        "expected finite log-likelihoods, got one that is not: the model's logits overflow"
    );
    Ok(scores)
}

/// The index of the largest value; of several, the first. What is no number is left out.
pub(crate) fn argmax<T: PartialOrd>(values: impl IntoIterator<Item = T>) -> Option<usize> {
    let numbers = values.into_iter().enumerate().filter(|(_, value)| value.partial_cmp(value).is_some());
    let best = numbers.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn unknown_tokens_and_logits_that_are_no_numbers_are_named() {
        assert_eq!(finite_scores(array![[0.0, 1.0]].view(), &[1]).unwrap().len(), 1);
        for (logits, next, expected) in [
            (array![[0.0, 1.0]], 2, "tokens below 2, the size of the model's vocabulary, got 2"),
            (array![[0.0, f32::NAN]], 0, "logits overflow"),
            (array![[0.0, f32::INFINITY]], 1, "logits overflow"),
        ] {
            let error = finite_scores(logits.view(), &[next]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(argmax([0.0, 2.0, 2.0, f64::NEG_INFINITY]), Some(1));
        assert_eq!(argmax([f32::NAN, 1.0, f32::NAN]), Some(1));
        assert_eq!(argmax([] as [f32; 0]), None);
    }
}
