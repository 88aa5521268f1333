//! Vocabularies that are out of all measure: refused, or read in time that grows with their size and no faster.

use std::time::{Duration, Instant};

use deltallm_models::{GgufVocabulary, Tokenizer, TokenizerError};
use serde_json::json;

use crate::added_tokens::{load, pieces};
use crate::refused;

/// Far more than any of these takes without optimisation, far less than quadratic time would be.
fn within_a_minute<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_secs(60), "took {:?}", start.elapsed());
    result
}

#[test]
fn a_token_longer_than_any_real_one_is_refused() {
    let long = "a".repeat(1_000_000);
    within_a_minute(|| {
        for (model, kind) in [("gpt2", 1), ("gpt2", 3), ("gpt2", 4), ("llama", 1), ("llama", 4)] {
            let error = refused(&GgufVocabulary {
                model,
                tokens: vec!["a", &long],
                scores: &[-1.0, -2.0],
                token_types: &[1, kind],
                ..GgufVocabulary::default()
            });
            assert!(
                matches!(error, TokenizerError::TokenTooLong { id: 1, limit: 4096, got: 1_000_000 }),
                "{error}"
            );
        }
        for place in ["added", "vocab"] {
            let mut file = pieces();
            match place {
                "added" => {
                    file["added_tokens"].as_array_mut().unwrap().push(json!({"id": 6, "content": long}))
                }
                _ => file["model"]["vocab"][&long] = json!(6),
            }
            let error = load("long-token", &file).unwrap_err();
            assert!(matches!(error, TokenizerError::TokenTooLong { id: 6, .. }), "{error}");
        }
    });
}

#[test]
fn many_long_pieces_are_read_in_linear_time() {
    // Each can be cut at thousands of places, and at none into two pieces.
    let tokens: Vec<String> = (0..2000).map(|i| format!("{}{i:04}", "ab".repeat(2000))).collect();
    let vocabulary = GgufVocabulary {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).chain(["a", "b"]).collect(),
        scores: &vec![-1.0; 2002],
        ..GgufVocabulary::default()
    };
    within_a_minute(|| Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap());
}

#[test]
fn pieces_that_can_be_put_together_in_endless_ways_are_refused() {
    let tokens: Vec<String> = (1..2000).map(|length| "a".repeat(length)).collect();
    let vocabulary = GgufVocabulary {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        scores: &vec![-1.0; 1999],
        ..GgufVocabulary::default()
    };
    let error = within_a_minute(|| refused(&vocabulary));
    assert!(matches!(error, TokenizerError::TooManyMerges { .. }), "{error}");
    // A run as long as published vocabularies have them.
    let vocabulary =
        GgufVocabulary { tokens: vocabulary.tokens[..64].to_vec(), scores: &[-1.0; 64], ..vocabulary };
    assert!(Tokenizer::from_gguf_vocabulary(&vocabulary).is_ok());
}

#[test]
fn many_special_tokens_are_read_and_too_long_ones_are_refused() {
    let added = |count: usize, length: usize| {
        let mut file = pieces();
        let tokens = file["added_tokens"].as_array_mut().unwrap();
        tokens.extend(
            (0..count).map(|i| json!({"id": 6 + i, "content": format!("<|{i:0length$}|>"), "special": true})),
        );
        file
    };
    within_a_minute(|| {
        let tokenizer = load("many-added", &added(20_000, 5)).unwrap();
        assert_eq!(tokenizer.encode_prompt("a<|01234|>a", false).unwrap(), [5, 1240, 5]);
        let error = load("long-added", &added(2500, 4000)).unwrap_err();
        assert!(matches!(error, TokenizerError::SpecialTokensTooLong { limit: 8_388_608, .. }), "{error}");
    });
}

#[test]
fn an_expression_that_goes_back_without_end_is_an_error_and_not_a_wait() {
    let mut file = pieces();
    file["pre_tokenizer"] = json!({"type": "Split", "pattern": {"Regex": "(a+)+(?=c)\\1"}, "behavior": "Isolated", "invert": false});
    let tokenizer = load("backtracking", &file).unwrap();
    assert_eq!(tokenizer.encode("b", false).unwrap(), [2, 4]);
    let error = within_a_minute(|| tokenizer.encode(&"a".repeat(5000), false).unwrap_err());
    assert!(matches!(error, TokenizerError::Pipeline { step: "pre-tokenizer", .. }), "{error}");
}

#[test]
fn an_expression_that_stays_below_the_steps_of_a_match_ends_in_seconds() {
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let replace = |pattern: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"});
    let word = format!("{}b", "a".repeat(10));
    for pattern in [
        // Some hundred thousand steps at each word of a text.
        r"(?:a|a|(?=a)a)+(?=c)|(?=a)a|b",
        r"(?=(?:a|a)+b)(?:(?=a)a|(?=a)a)+(?!b)(?=c)|[ab]",
        // Few steps, each as long as the rest of the text.
        r"(?=(?:[^c]*c)?)(?=.*[^a]*)[ab]",
    ] {
        for (field, step) in [("pre_tokenizer", split(pattern)), ("normalizer", replace(pattern))] {
            let mut file = pieces();
            file[field] = step;
            let tokenizer = load("slow-expression", &file).unwrap();
            for bytes in [8_000, 80_000] {
                let start = std::time::Instant::now();
                let result = tokenizer.encode(&word.repeat(bytes / word.len()), false);
                assert!(start.elapsed().as_secs() < 10, "{:?} {bytes} {pattern}", start.elapsed());
                if let Err(error) = result {
                    let is_typed = matches!(
                        error,
                        TokenizerError::ExpressionTooSlow { .. } | TokenizerError::Pipeline { .. }
                    );
                    assert!(is_typed, "{error}");
                }
            }
        }
    }
    let mut file = pieces();
    file["pre_tokenizer"] = split(r"(?:a|a|(?=a)a)+(?=c)|(?=a)a|b");
    let error = load("slow-expression", &file).unwrap().encode(&word.repeat(4000), false).unwrap_err();
    assert!(matches!(error, TokenizerError::ExpressionTooSlow { .. }), "{error}");
}

#[test]
fn expressions_of_published_files_take_a_hundredth_of_the_time() {
    for pattern in [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ] {
        let mut file = pieces();
        file["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let tokenizer = load("published-expression", &file).unwrap();
        let text = "ab aaa, 12345 b's\n\n   a\t\t b ".repeat(3000) + &" ".repeat(3000) + "a";
        let start = std::time::Instant::now();
        tokenizer.encode(&text, false).unwrap();
        // Merging included; 2 s and 10 µs for each byte are allowed to the expressions.
        assert!(start.elapsed().as_millis() < 1500, "{:?} {pattern}", start.elapsed());
    }
}

#[test]
fn an_expression_that_matches_nowhere_in_a_long_text_is_no_error() {
    // Digits in threes from the right, as some vocabularies have them.
    let pattern = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))";
    let mut file = pieces();
    file["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let tokenizer = load("nowhere", &file).unwrap();
    let text = "ab".repeat(50_000);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false).unwrap()).unwrap(), text);
}

#[test]
fn an_expression_of_many_parts_is_read_and_used_in_bounded_time() {
    // Each part behind a look-around is compiled by itself, with all letters of Unicode.
    let parts = r"(?=a)\p{L}".repeat(800);
    let repeated = r"((?=a)\p{L}){999}";
    for pattern in [&parts, repeated] {
        let mut file = pieces();
        file["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let ids =
            within_a_minute(|| load("many-parts", &file).and_then(|it| it.encode(&"a".repeat(2000), false)));
        assert!(ids.is_ok() || pattern == repeated, "{ids:?}");
    }
}
