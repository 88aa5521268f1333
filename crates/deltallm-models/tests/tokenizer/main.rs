//! Properties and edge cases of tokenizers.

mod added_tokens;
mod gemma;
#[cfg(feature = "gguf")]
mod gguf_defaults;
#[cfg(feature = "gguf")]
#[path = "../common/gguf_writer.rs"]
#[allow(dead_code, reason = "other test programs use the rest")]
mod gguf_writer;
mod goldens;
mod hostile_steps;
mod limits;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::PathBuf;

use deltallm_models::{GgufVocabulary, StreamDecoder, Tokenizer, TokenizerError};
use proptest::prelude::*;
use vocabulary::{VocabularyFile, fixture, read};

fn llama_bpe() -> Tokenizer {
    let file: VocabularyFile = read(&fixture("llama-bpe.json"));
    Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap()
}

fn sentencepiece() -> Tokenizer {
    let file: VocabularyFile = read(&fixture("spm.json"));
    Tokenizer::from_gguf_vocabulary(&file.as_gguf()).unwrap()
}

/// `a b ab <|im_end|>`, merging `a b`.
fn tiny() -> GgufVocabulary<'static> {
    GgufVocabulary {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: vec!["a", "b", "ab", "<|im_end|>"],
        token_types: &[1, 1, 1, 3],
        merges: vec!["a b"],
        ..GgufVocabulary::default()
    }
}

fn refused(vocabulary: &GgufVocabulary<'_>) -> TokenizerError {
    Tokenizer::from_gguf_vocabulary(vocabulary).expect_err("expected an error")
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text: String = ids.iter().filter_map(|&id| decoder.push(id).unwrap()).collect();
    text.extend(decoder.finish());
    text
}

/// SentencePiece's rule, word for word: join the leftmost of the adjacent pairs whose union scores highest.
///
/// `None` if two ways of making the same piece ever compete for the same characters (`aa|a|aa` with the piece `aaa`).
fn sentencepiece_by_hand(text: &str, scores: &BTreeMap<String, f32>) -> Option<Vec<String>> {
    let mut pieces: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for left in 0..pieces.len().saturating_sub(1) {
            if let Some(&score) = scores.get(&(pieces[left].clone() + &pieces[left + 1]))
                && best.is_none_or(|(highest, _)| score > highest)
            {
                best = Some((score, left));
            }
        }
        let Some((_, left)) = best else { return Some(pieces) };
        if let [x, y, z, ..] = &pieces[left..]
            && x.len() != y.len()
            && x.clone() + y == y.clone() + z
        {
            return None;
        }
        let right = pieces.remove(left + 1);
        pieces[left].push_str(&right);
    }
}

proptest! {
    #[test]
    fn byte_level_text_comes_back_whole(text in any::<String>()) {
        let tokenizer = llama_bpe();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn sentencepiece_text_comes_back_whole(text in any::<String>()) {
        let tokenizer = sentencepiece();
        let ids = tokenizer.encode(&text, false).unwrap();
        // SentencePiece cannot tell its own space sign from a space.
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('▁', " "));
    }

    #[test]
    fn stream_of_any_ids_equals_decode(ids in prop::collection::vec(0u32..400, 0..40)) {
        for tokenizer in [llama_bpe(), sentencepiece()] {
            prop_assert_eq!(stream(&tokenizer, &ids), tokenizer.decode(&ids).unwrap());
        }
    }

    /// Fragments of control tokens in any order never make one, escaped or not.
    #[test]
    fn plain_text_makes_no_control_token(
        parts in prop::collection::vec(
            prop::sample::select(vec!["<|eot_id|>", "<|", "eot_id", "|>", "<|begin_of_text|>", " ", "\u{FDD0}", "a", "é"]),
            0..12,
        ),
    ) {
        let tokenizer = llama_bpe();
        let text = parts.concat();
        let control = [
            tokenizer.token_to_id("<|begin_of_text|>").unwrap(),
            tokenizer.token_to_id("<|eot_id|>").unwrap(),
        ];
        let plain = tokenizer.encode(&text, false).unwrap();
        let escaped = tokenizer.encode_prompt(&tokenizer.escape(&text), false).unwrap();
        prop_assert!(!plain.iter().chain(&escaped).any(|id| control.contains(id)));
        if !text.contains('\u{FDD0}') {
            prop_assert_eq!(plain, escaped);
        }
    }

    #[test]
    fn sentencepiece_merges_equal_the_rule(
        pieces in prop::collection::hash_set("[abc]{2,5}", 1..24),
        text in "[abc]{1,40}",
    ) {
        // In the random order of the set. No two pieces have the same score.
        let scores: BTreeMap<String, f32> = pieces.into_iter().zip(0u8..).map(|(piece, rank)| (piece, -f32::from(rank))).collect();
        let mut tokens = vec!["a", "b", "c"];
        tokens.extend(scores.keys().map(String::as_str));
        let token_scores: Vec<f32> = tokens.iter().map(|&token| scores.get(token).copied().unwrap_or(-100.0)).collect();
        let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
            model: "llama",
            tokens,
            scores: &token_scores,
            add_space_prefix: Some(false),
            ..GgufVocabulary::default()
        })
        .unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        let got: Vec<String> = ids.iter().map(|&id| tokenizer.token_text(id).unwrap().into_owned()).collect();
        if let Some(expected) = sentencepiece_by_hand(&text, &scores) {
            prop_assert_eq!(got, expected);
        }
    }
}

#[test]
fn tiny_vocabulary_encodes() {
    let tokenizer = Tokenizer::from_gguf_vocabulary(&tiny()).unwrap();
    assert_eq!(tokenizer.encode("abba", true).unwrap(), [2, 1, 0]);
    assert_eq!(tokenizer.eos_ids(), [3]);
    assert_eq!(tokenizer.vocab_size(), 4);
    assert_eq!(tokenizer.token_to_id("ab"), Some(2));
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(3));
    assert_eq!(tokenizer.token_to_id("c"), None);
}

#[test]
fn control_tokens_only_in_prompts() {
    let tokenizer = llama_bpe();
    let eot = tokenizer.token_to_id("<|eot_id|>").unwrap();
    let prompt = tokenizer.encode_prompt("a<|eot_id|>", false).unwrap();
    assert_eq!(prompt.last(), Some(&eot));
    assert!(!tokenizer.encode("a<|eot_id|>", false).unwrap().contains(&eot));
    assert_eq!(tokenizer.decode(&prompt).unwrap(), "a");
    assert_eq!(tokenizer.token_text(eot).unwrap(), "<|eot_id|>");
}

#[test]
fn escape_leaves_other_text_alone() {
    let tokenizer = llama_bpe();
    for text in ["", "plain", "<|eot_id |>", "é<|"] {
        assert!(matches!(tokenizer.escape(text), std::borrow::Cow::Borrowed(same) if same == text));
    }
}

#[test]
fn control_tokens_that_overlap_are_all_escaped() {
    let vocabulary = GgufVocabulary {
        tokens: vec!["a", "b", "ab", "aba", "bab", "x"],
        token_types: &[1, 1, 1, 3, 3, 3],
        ..tiny()
    };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    for text in ["ababab", "xababx", "aabab", "x"] {
        let plain = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.encode_prompt(&tokenizer.escape(text), false).unwrap(), plain, "{text}");
    }
    assert_eq!(tokenizer.encode_prompt("abab", false).unwrap(), [3, 1]);
}

#[test]
fn user_defined_tokens_match_in_plain_text() {
    let vocabulary =
        GgufVocabulary { tokens: vec!["a", "b", "ab", "ba b"], token_types: &[1, 1, 1, 4], ..tiny() };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    let ids = tokenizer.encode("aba bb", false).unwrap();
    assert_eq!(ids, [0, 3, 1]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "aba bb");
}

#[test]
fn bos_and_eos_are_added_when_wanted() {
    let vocabulary =
        GgufVocabulary { bos: Some(3), eos: Some(3), add_bos: Some(true), add_eos: Some(true), ..tiny() };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [3, 0, 3]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [0]);
    assert_eq!(tokenizer.eos_ids(), [3]);
}

#[test]
fn continued_stream_keeps_its_first_space() {
    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("there", false).unwrap();
    let mut decoder = StreamDecoder::continuing(&tokenizer);
    let text: String = ids.iter().filter_map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(text, " there");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "there");
}

#[test]
fn stream_holds_back_half_a_character() {
    let tokenizer = llama_bpe();
    let ids = tokenizer.encode("😀", false).unwrap();
    assert!(ids.len() > 1);
    let mut decoder = StreamDecoder::new(&tokenizer);
    for &id in &ids[..ids.len() - 1] {
        assert_eq!(decoder.push(id).unwrap(), None);
    }
    assert_eq!(decoder.push(ids[ids.len() - 1]).unwrap().as_deref(), Some("😀"));
    assert_eq!(decoder.finish(), None);

    let mut decoder = StreamDecoder::new(&tokenizer);
    decoder.push(ids[0]).unwrap();
    assert_eq!(decoder.finish().as_deref(), Some("\u{FFFD}"));
}

#[test]
fn bytes_without_a_symbol_are_left_out() {
    let tokenizer = Tokenizer::from_gguf_vocabulary(&tiny()).unwrap();
    assert_eq!(tokenizer.encode("a\u{4}b", false).unwrap(), [0, 1]);
    let vocabulary = GgufVocabulary {
        tokens: vec!["a", "b", "ab", "<unk>"],
        token_types: &[1, 1, 1, 2],
        unk: Some(3),
        ..tiny()
    };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    assert_eq!(tokenizer.encode("a\u{4}b", false).unwrap(), [0, 3, 1]);
}

#[test]
fn long_runs_of_one_character() {
    for tokenizer in [llama_bpe(), sentencepiece()] {
        for character in [" ", "a", "\n", "!", "é"] {
            let text = character.repeat(200_000);
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
fn empty_vocabulary() {
    let vocabulary = GgufVocabulary { model: "gpt2", ..GgufVocabulary::default() };
    assert!(matches!(refused(&vocabulary), TokenizerError::EmptyVocabulary));
}

#[test]
fn unknown_pre_tokenizer_names_the_known_ones() {
    let error = refused(&GgufVocabulary { pre: Some("klingon"), ..tiny() });
    assert!(matches!(&error, TokenizerError::UnknownPreTokenizer { got, .. } if got == "klingon"));
    let message = error.to_string();
    for name in [
        "klingon",
        "smollm",
        "llama-bpe",
        "llama3",
        "llama-v3",
        "smaug-bpe",
        "qwen2",
        "tekken",
        "default",
        "gpt-2",
    ] {
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn every_known_pre_tokenizer_builds() {
    for name in [
        "smollm",
        "llama-bpe",
        "llama3",
        "llama-v3",
        "smaug-bpe",
        "qwen2",
        "deepseek-r1-qwen",
        "tekken",
        "default",
        "gpt-2",
    ] {
        Tokenizer::from_gguf_vocabulary(&GgufVocabulary { pre: Some(name), ..tiny() }).unwrap();
    }
    Tokenizer::from_gguf_vocabulary(&GgufVocabulary { pre: None, ..tiny() }).unwrap();
}

#[test]
fn unsupported_model() {
    let error = refused(&GgufVocabulary { model: "t5", ..tiny() });
    assert_eq!(error.to_string(), "unsupported tokenizer model: expected one of gpt2, llama, got `t5`");
}

#[test]
fn merge_of_an_unknown_token() {
    for (merge, unknown) in [("a x", "x"), ("x a", "x"), ("b a", "ba")] {
        let error = refused(&GgufVocabulary { merges: vec!["a b", merge], ..tiny() });
        assert!(
            matches!(&error, TokenizerError::UnknownMergeToken { index: 1, token } if token == unknown),
            "{error}"
        );
    }
}

#[test]
fn merge_longer_than_every_token() {
    let long = "a".repeat(1000);
    let merge = format!("{long} b");
    let vocabulary = GgufVocabulary { merges: vec![&merge], ..tiny() };
    assert!(matches!(refused(&vocabulary), TokenizerError::UnknownMergeToken { index: 0, .. }));
}

#[test]
fn malformed_merge() {
    for merge in ["", "ab", "a b c", " b", "a "] {
        let error = refused(&GgufVocabulary { merges: vec![merge], ..tiny() });
        assert!(matches!(&error, TokenizerError::MalformedMerge { index: 0, .. }), "{merge:?}: {error}");
    }
}

#[test]
fn merge_into_a_control_token_is_not_made() {
    let vocabulary = GgufVocabulary { token_types: &[1, 1, 3, 3], ..tiny() };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [0, 1]);
}

#[test]
fn duplicate_token() {
    let error = refused(&GgufVocabulary { tokens: vec!["a", "b", "ab", "a"], ..tiny() });
    assert!(matches!(&error, TokenizerError::DuplicateToken { token, first: 0, second: 3 } if token == "a"));
}

#[test]
fn token_types_of_another_length() {
    let error = refused(&GgufVocabulary { token_types: &[1, 1], ..tiny() });
    assert!(matches!(error, TokenizerError::LengthMismatch { field: "token_types", expected: 4, got: 2 }));
}

#[test]
fn scores_of_another_length() {
    for scores in [&[][..], &[0.0, -1.0]] {
        let error = refused(&GgufVocabulary { model: "llama", scores, ..tiny() });
        assert!(
            matches!(error, TokenizerError::LengthMismatch { field: "scores", expected: 4, got } if got == scores.len())
        );
    }
}

#[test]
fn scores_that_are_not_finite() {
    for score in [f32::NAN, f32::INFINITY] {
        let error = refused(&GgufVocabulary { model: "llama", scores: &[0.0, score, 0.0, 0.0], ..tiny() });
        assert!(matches!(error, TokenizerError::InvalidScore { id: 1, .. }));
    }
}

#[test]
fn unknown_token_type() {
    for got in [0, 7, -1] {
        let error = refused(&GgufVocabulary { token_types: &[1, 1, got, 1], ..tiny() });
        assert!(matches!(error, TokenizerError::UnknownTokenType { id: 2, got: g } if g == got));
    }
}

#[test]
fn special_ids_out_of_range() {
    for (what, vocabulary) in [
        ("bos", GgufVocabulary { bos: Some(4), ..tiny() }),
        ("eos", GgufVocabulary { eos: Some(4), ..tiny() }),
        ("eot", GgufVocabulary { eot: Some(4), ..tiny() }),
        ("unk", GgufVocabulary { unk: Some(4), ..tiny() }),
    ] {
        let error = refused(&vocabulary);
        assert!(
            matches!(error, TokenizerError::IdOutOfRange { what: w, id: 4, vocab_size: 4 } if w == what),
            "{what}"
        );
    }
}

#[test]
fn decode_of_an_id_out_of_range() {
    let tokenizer = Tokenizer::from_gguf_vocabulary(&tiny()).unwrap();
    for id in [4, u32::MAX] {
        let out =
            |error| matches!(error, TokenizerError::IdOutOfRange { id: got, vocab_size: 4, .. } if got == id);
        assert!(out(tokenizer.decode(&[0, id]).unwrap_err()));
        assert!(out(tokenizer.token_text(id).unwrap_err()));
        let mut decoder = StreamDecoder::new(&tokenizer);
        assert!(out(decoder.push(id).unwrap_err()));
        assert_eq!(decoder.push(0).unwrap().as_deref(), Some("a"));
    }
}

#[test]
fn too_many_tokens() {
    let tokens = vec!["a"; (1 << 20) + 1];
    let error = refused(&GgufVocabulary { tokens, token_types: &[], ..tiny() });
    assert!(matches!(error, TokenizerError::VocabularyTooLarge { .. }));
}

/// A folder of files that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("deltallm-tokenizer-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            std::fs::write(path.join(file), text).unwrap();
        }
        Self(path)
    }

    fn load(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_json_file(self.0.join("tokenizer.json"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const TOKENIZER_JSON: &str = r#"{
    "added_tokens": [
        {"id": 3, "content": "<|im_end|>", "special": true, "lstrip": false, "rstrip": true},
        {"id": 4, "content": "<s>", "special": true}
    ],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": {"a": 0, "b": 1, "ab": 2, "<|im_end|>": 3}, "merges": ["a b"]}
}"#;

#[test]
fn json_file_with_its_configuration() {
    let folder = Folder::new(
        "whole",
        &[
            ("tokenizer.json", TOKENIZER_JSON),
            (
                "tokenizer_config.json",
                r#"{"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "chat_template": "{{ messages }}"}"#,
            ),
            ("generation_config.json", r#"{"eos_token_id": [3, 0]}"#),
        ],
    );
    let tokenizer = folder.load().unwrap();
    assert_eq!(tokenizer.bos(), Some(4));
    assert_eq!(tokenizer.eos_ids(), [3, 0]);
    assert_eq!(tokenizer.vocab_size(), 5);
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [4, 2]);
    assert_eq!(tokenizer.encode_prompt("a<|im_end|>  b", false).unwrap(), [0, 3, 1]);
    assert_eq!(tokenizer.decode(&[4, 2, 3]).unwrap(), "ab");
}

#[test]
fn json_file_alone() {
    let folder = Folder::new("alone", &[("tokenizer.json", TOKENIZER_JSON)]);
    let tokenizer = folder.load().unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.chat_template()), (None, None));
    assert_eq!(tokenizer.eos_ids(), [3]);
}

#[test]
fn json_chat_template_of_its_own_file() {
    let files = [("tokenizer.json", TOKENIZER_JSON), ("chat_template.jinja", "{{ bos_token }}")];
    let folder = Folder::new("jinja", &files);
    assert_eq!(folder.load().unwrap().chat_template(), Some("{{ bos_token }}"));
}

#[test]
fn json_file_missing_or_malformed() {
    let folder = Folder::new("malformed", &[]);
    let error = folder.load().unwrap_err();
    assert!(matches!(&error, TokenizerError::Io { path, .. } if path.ends_with("tokenizer.json")), "{error}");
    for text in ["", "{", "[]", "{\"model\": 3}", "{\"model\": {\"type\": \"BPE\"}}"] {
        std::fs::write(folder.0.join("tokenizer.json"), text).unwrap();
        assert!(matches!(folder.load().unwrap_err(), TokenizerError::Json { .. }), "{text}");
    }
}

#[test]
fn json_parts_that_cannot_be_read() {
    let change = |name: &str, from: &str, to: &str| {
        assert!(TOKENIZER_JSON.contains(from));
        Folder::new(name, &[("tokenizer.json", &TOKENIZER_JSON.replacen(from, to, 1))]).load().unwrap_err()
    };
    let error = change("unigram", r#""type": "BPE""#, r#""type": "Unigram""#);
    assert!(matches!(&error, TokenizerError::UnsupportedModel { got, .. } if got == "Unigram"));
    let error = change("decoder", r#""decoder": {"type": "ByteLevel""#, r#""decoder": {"type": "CTC""#);
    assert!(matches!(error, TokenizerError::UnsupportedField { field: "decoder", .. }));
    let error = change("dropout", r#""dropout": null"#, r#""dropout": 0.1"#);
    assert!(matches!(error, TokenizerError::UnsupportedField { field: "model.dropout", .. }));
    let error = change("duplicate", r#""ab": 2"#, r#""ab": 0"#);
    assert!(matches!(error, TokenizerError::DuplicateId { id: 0, .. }));
    let error = change("huge", r#""ab": 2"#, r#""ab": 4294967295"#);
    assert!(matches!(error, TokenizerError::VocabularyTooLarge { .. }));
    let error = change("merge", r#"["a b"]"#, r#"[["a", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]]"#);
    assert!(matches!(error, TokenizerError::UnknownMergeToken { index: 0, .. }));
    let error = change("post", r#""ids": [4]"#, r#""ids": [9]"#);
    assert!(matches!(error, TokenizerError::IdOutOfRange { what: "post_processor", id: 9, vocab_size: 5 }));
    // Below the highest id, and no token: found by fuzzing.
    let error = change("hole", r#"{"id": 4,"#, r#"{"id": 5,"#);
    assert!(matches!(error, TokenizerError::IdOutOfRange { what: "post_processor", id: 4, vocab_size: 6 }));
}

/// Found by fuzzing.
#[test]
fn a_template_with_a_token_that_it_does_not_define_is_refused() {
    let file: serde_json::Value = serde_json::from_str(TOKENIZER_JSON).unwrap();
    let mut template = file["post_processor"].clone();
    let tokens = template["special_tokens"].as_object_mut().unwrap();
    let name = tokens.keys().next().unwrap().clone();
    let token = tokens.remove(&name).unwrap();
    tokens.insert("another".to_owned(), token);
    for post_processor in
        [template.clone(), serde_json::json!({"type": "Sequence", "processors": [template]})]
    {
        let mut file = file.clone();
        file["post_processor"] = post_processor;
        let folder = Folder::new("template", &[("tokenizer.json", &file.to_string())]);
        let error = folder.load().unwrap_err();
        assert!(
            matches!(&error, TokenizerError::UnsupportedField { field: "post_processor", got, .. } if got.contains(&name)),
            "{error}"
        );
    }
}
