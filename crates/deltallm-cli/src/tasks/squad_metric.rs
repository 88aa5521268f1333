//! Exact match and F1 of SQuAD 2.0 (Rajpurkar et al., arXiv 1806.03822), as its evaluation script computes them.

use std::collections::HashMap;

/// Lower case, without ASCII punctuation, the words *a*, *an* and *the*, and surplus white space.
///
/// ```
/// assert_eq!(deltallm_cli::normalise(" The  U.S. and a dog"), "us and dog");
/// ```
pub fn normalise(text: &str) -> String {
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|c| !c.is_ascii_punctuation()).collect();
    without_articles(&plain).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Replaces the articles by spaces. A word ends where a letter, digit or underscore does.
fn without_articles(text: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        match &rest[..word] {
            "a" | "an" | "the" => result.push(' '),
            other => result.push_str(other),
        }
        let gap = rest[word..].find(is_word).map_or(rest.len(), |gap| word + gap);
        result.push_str(&rest[word..gap]);
        rest = &rest[gap..];
    }
    result
}

/// 1 if the prediction is one of the gold answers once both are normalised, else 0. Without a gold answer (an
/// unanswerable question) the empty prediction is right.
pub fn exact_match(prediction: &str, golds: &[String]) -> f64 {
    best(golds, |gold| f64::from(u8::from(normalise(prediction) == gold)))
}

/// The best F1, of words as a bag, over the gold answers. Without a gold answer the empty prediction is right.
pub fn f1(prediction: &str, golds: &[String]) -> f64 {
    let prediction = normalise(prediction);
    best(golds, |gold| f1_of(&prediction, gold))
}

/// Gold answers that are nothing but articles and punctuation do not count.
fn best(golds: &[String], score: impl Fn(&str) -> f64) -> f64 {
    let golds: Vec<String> =
        golds.iter().map(|gold| normalise(gold)).filter(|gold| !gold.is_empty()).collect();
    match golds.as_slice() {
        [] => score(""),
        golds => golds.iter().map(|gold| score(gold)).fold(0.0, f64::max),
    }
}

fn f1_of(prediction: &str, gold: &str) -> f64 {
    let words = |text: &str| text.split_whitespace().count();
    let (predicted, wanted) = (words(prediction), words(gold));
    if predicted == 0 || wanted == 0 {
        return f64::from(u8::from(predicted == wanted));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    gold.split_whitespace().for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0;
    for word in prediction.split_whitespace() {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) = (common as f64 / predicted as f64, common as f64 / wanted as f64);
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golds(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn answers_are_normalised() {
        for (text, expected) in [
            (" The Norse leader, Rollo. ", "norse leader rollo"),
            ("an apple a day", "apple day"),
            ("theory of anthems", "theory of anthems"),
            ("U.S.A.", "usa"),
            // Punctuation goes first: what it leaves behind may be an article.
            ("'A'", ""),
            ("10th–11th", "10th–11th"),
            ("the–a", "–"),
            ("ÉCOLE", "école"),
            ("a\tb\u{a0}c", "b c"),
        ] {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn f1_counts_words_as_often_as_they_occur() {
        // Two of three words are common, two of two are wanted.
        assert!((f1("in Rouen, France", &golds(&["rouen france"])) - 0.8).abs() < 1e-12);
        assert!((f1("no no no", &golds(&["no"])) - 0.5).abs() < 1e-12);
        assert_eq!(f1("Paris", &golds(&["Rouen"])), 0.0);
        assert_eq!(f1("Rollo", &golds(&["nobody", "Rollo"])), 1.0);
    }

    #[test]
    fn an_exact_match_is_one_after_normalising() {
        assert_eq!(exact_match("The Normans.", &golds(&["Vikings", "Normans"])), 1.0);
        assert_eq!(exact_match("Normans of France", &golds(&["Normans"])), 0.0);
    }

    #[test]
    fn nothing_is_right_where_there_is_no_answer() {
        for unanswerable in [golds(&[]), golds(&["the"])] {
            assert_eq!((f1("", &unanswerable), exact_match("", &unanswerable)), (1.0, 1.0));
            assert_eq!((f1("a", &unanswerable), exact_match(" . ", &unanswerable)), (1.0, 1.0));
            assert_eq!((f1("Rollo", &unanswerable), exact_match("Rollo", &unanswerable)), (0.0, 0.0));
        }
        assert_eq!((f1("", &golds(&["Rollo"])), exact_match("", &golds(&["Rollo"]))), (0.0, 0.0));
    }
}
