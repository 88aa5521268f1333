//! The fields of added tokens in tokenizer.json, the steps around the model, and texts with the signs that are used inside.

use deltallm_models::{StreamDecoder, Tokenizer, TokenizerError};
use serde_json::{Value, json};

use crate::Folder;

/// A vocabulary of pieces as Llama 2 has it: spaces as `▁`, one of them in front.
pub(crate) fn pieces() -> Value {
    json!({
        "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": false,
            "vocab": {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5}, "merges": [["▁", "a"]]}
    })
}

pub(crate) fn load(name: &str, file: &Value) -> Result<Tokenizer, TokenizerError> {
    // Tests run side by side.
    let test = std::thread::current().name().unwrap_or_default().replace("::", "-");
    Folder::new(&format!("{test}-{name}"), &[("tokenizer.json", &file.to_string())]).load()
}

fn with_token(token: Value) -> Tokenizer {
    let mut file = pieces();
    file["added_tokens"].as_array_mut().unwrap().push(token);
    load("with-token", &file).unwrap()
}

#[test]
fn a_token_that_is_normalized_is_found_in_normalized_text() {
    let tokenizer = with_token(json!({"id": 6, "content": "b b", "special": false, "normalized": true}));
    // As the crate `tokenizers`: `b b` is `▁b▁b` once normalized, and so is the text.
    assert_eq!(tokenizer.encode("b b", false).unwrap(), [6]);
    assert_eq!(tokenizer.encode("a b b", false).unwrap(), [5, 6]);
    assert_eq!(tokenizer.encode("ab b", false).unwrap(), [5, 4, 2, 4]);
    assert_eq!(tokenizer.decode(&[5, 6]).unwrap(), "a b b");
}

#[test]
fn a_token_that_is_not_normalized_is_found_in_the_text_as_it_is() {
    let tokenizer = with_token(json!({"id": 6, "content": "b b", "special": false, "normalized": false}));
    assert_eq!(tokenizer.encode("ab b", false).unwrap(), [5, 6]);
    assert_eq!(tokenizer.decode(&[5, 6]).unwrap(), "ab b");
}

#[test]
fn a_token_takes_white_space_on_the_sides_that_it_says() {
    for (lstrip, rstrip, expected) in [
        (false, false, &[5, 2, 1, 2, 5][..]),
        (true, false, &[5, 1, 2, 5]),
        (false, true, &[5, 2, 1, 5]),
        (true, true, &[5, 1, 5]),
    ] {
        let mut file = pieces();
        file["added_tokens"][1]["lstrip"] = json!(lstrip);
        file["added_tokens"][1]["rstrip"] = json!(rstrip);
        let tokenizer = load(&format!("strip-{lstrip}-{rstrip}"), &file).unwrap();
        assert_eq!(tokenizer.encode_prompt("a <s> a", false).unwrap(), expected, "{lstrip} {rstrip}");
    }
}

#[test]
fn a_token_that_must_be_a_single_word_is_refused() {
    let mut file = pieces();
    file["added_tokens"][1]["single_word"] = json!(true);
    let error = load("single-word", &file).unwrap_err();
    assert!(
        matches!(error, TokenizerError::UnsupportedField { field: "added_tokens.single_word", .. }),
        "{error}"
    );
}

#[test]
fn a_space_goes_in_front_of_the_start_of_a_text_only_where_metaspace_says_first() {
    let mut file = pieces();
    file["normalizer"] = Value::Null;
    file["decoder"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    for (scheme, expected) in [("first", [5, 1, 3]), ("always", [5, 1, 5]), ("never", [3, 1, 3])] {
        file["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        let tokenizer = load(&format!("scheme-{scheme}"), &file).unwrap();
        assert_eq!(tokenizer.encode_prompt("a<s>a", false).unwrap(), expected, "{scheme}");
    }
}

#[test]
fn a_post_processor_puts_its_tokens_around_a_text() {
    let pair = json!(["</s>", 4]);
    for (name, post_processor, expected) in [
        ("none", Value::Null, &[5][..]),
        (
            "roberta",
            json!({"type": "RobertaProcessing", "sep": pair, "cls": ["<s>", 1], "trim_offsets": true, "add_prefix_space": true}),
            &[1, 5, 4],
        ),
        ("bert", json!({"type": "BertProcessing", "sep": pair, "cls": ["<s>", 1]}), &[1, 5, 4]),
        (
            "bytes",
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            &[5],
        ),
        (
            "template",
            json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false},
            {"type": "TemplateProcessing", "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 3], "tokens": ["<s>", "a"]}},
             "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]}),
            &[1, 3, 5],
        ),
    ] {
        let mut file = pieces();
        file["post_processor"] = post_processor;
        let tokenizer = load(&format!("post-{name}"), &file).unwrap();
        assert_eq!(tokenizer.encode("a", true).unwrap(), expected, "{name}");
        assert_eq!(tokenizer.encode("a", false).unwrap(), [5], "{name}");
    }
}

#[test]
fn steps_that_are_not_read_are_refused_by_name() {
    let template = json!({"type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"Sequence": {"id": "A", "type_id": 0}}]});
    let with = |key: &str, value: Value| {
        let mut template = template.clone();
        template[key] = value;
        template
    };
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    for (field, step, said) in [
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}), "Precompiled"),
        ("normalizer", json!({"type": "Sequence", "normalizers": [{"type": "Nmt"}]}), "Nmt"),
        ("normalizer", json!({"type": "BertNormalizer", "lowercase": true}), "BertNormalizer"),
        ("normalizer", json!({"prepend": "▁"}), "null"),
        ("normalizer", json!({"type": "NFC", "form": "NFD"}), "`form`"),
        ("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}), "an empty one"),
        ("normalizer", json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}), "an empty one"),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(17)}),
            "17",
        ),
        ("normalizer", json!({"type": "Prepend", "prepend": "a".repeat(1000)}), "1000"),
        ("normalizer", json!({"type": "Strip", "strip_left": 1, "strip_right": true}), "invalid type"),
        ("normalizer", json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 65]}), "more"),
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "FixedLength"),
        ("pre_tokenizer", json!({"type": "UnicodeScripts"}), "UnicodeScripts"),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": 3}), "3"),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(?=a){900000000}"}, "behavior": "Isolated", "invert": false}),
            "14400000000",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "((?=a)b{900}){900}"}, "behavior": "Isolated", "invert": false}),
            "14580000",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            "arsing",
        ),
        (
            "pre_tokenizer",
            json!({"type": "Sequence", "pretokenizers": vec![json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true}); 2]}),
            "more than one ByteLevel",
        ),
        ("post_processor", with("single", json!([])), "0"),
        ("post_processor", with("single", json!([sequence, sequence])), "2"),
        ("post_processor", with("single", json!([{"Sequence": {"id": "B", "type_id": 0}}])), "B"),
        (
            "post_processor",
            with("single", json!([sequence, {"SpecialToken": {"id": "<s>", "type_id": 0}}])),
            "<s>",
        ),
        ("post_processor", json!({"type": "Sequence", "processors": [template, template]}), "several"),
        ("post_processor", json!({"type": "Unheard"}), "Unheard"),
        ("decoder", json!({"type": "Replace", "pattern": {"String": "x"}, "content": "y"}), "y"),
        ("decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 3}), "3"),
        ("decoder", json!({"type": "Metaspace", "replacement": "x", "prepend_scheme": "first"}), "x"),
        ("decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
        ("decoder", json!({"type": "Fuse"}), "neither"),
    ] {
        let mut file = pieces();
        file[field] = step.clone();
        let error = load("refused-step", &file).unwrap_err();
        let right = matches!(&error, TokenizerError::UnsupportedField { field: of, got, .. } if *of == field && got.contains(said));
        assert!(right, "{step}: {error}");
    }
}

#[test]
fn a_normalizer_that_makes_texts_ever_longer_is_refused_when_it_does() {
    let mut file = pieces();
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double; 40]});
    let tokenizer = load("growth", &file).unwrap();
    assert_eq!(tokenizer.encode("b", false).unwrap(), [4]);
    let error = tokenizer.encode(&"a".repeat(1000), false).unwrap_err();
    assert!(matches!(error, TokenizerError::NormalizedTooLong { limit: 32_000, got: 64_000 }), "{error}");
}

#[test]
fn a_replacement_at_the_very_start_of_a_text_does_no_harm() {
    let mut file = pieces();
    file["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"Regex": "^|b*"}, "content": "a"}, {"type": "NFC"}, {"type": "Lowercase"}]});
    file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"});
    let tokenizer = load("start", &file).unwrap();
    for text in ["", "a", "b", "bab", "é b"] {
        assert!(tokenizer.encode(text, false).is_ok(), "{text:?}");
    }
}

#[test]
fn user_defined_pieces_are_decoded_as_other_pieces() {
    let tokenizer = with_token(json!({"id": 6, "content": "▁▁", "special": false, "normalized": false}));
    assert_eq!(tokenizer.decode(&[5, 6, 3]).unwrap(), "a  a");
}

#[test]
fn the_sign_that_escapes_control_tokens_comes_through() {
    let tokenizer = load("escape", &pieces()).unwrap();
    let mut file = pieces();
    file["model"]["vocab"]["\u{FDD0}"] = json!(6);
    let knows_it = load("escape-known", &file).unwrap();
    for text in ["\u{FDD0}", "a\u{FDD0}<s>\u{FDD0}", "\u{FDD0}\u{FDD0}<s>b", "<s>\u{FDD0}", "<<s>s>"] {
        for tokenizer in [&tokenizer, &knows_it] {
            let plain = tokenizer.encode(text, false).unwrap();
            assert!(!plain.contains(&1));
            assert_eq!(tokenizer.encode_prompt(&tokenizer.escape(text), false).unwrap(), plain, "{text:?}");
            // What follows in the template is still that token.
            let prompt = format!("{}<s>", tokenizer.escape(text));
            assert_eq!(
                tokenizer.encode_prompt(&prompt, false).unwrap(),
                [plain, vec![1]].concat(),
                "{text:?}"
            );
        }
    }
}

#[test]
fn a_stream_of_normalized_tokens_equals_decode() {
    let tokenizer = with_token(json!({"id": 6, "content": "b b", "special": false, "normalized": true}));
    for ids in [vec![6, 5, 6], vec![5, 6, 1, 6]] {
        let mut stream = StreamDecoder::new(&tokenizer);
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        text.extend(stream.finish());
        assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }
}

#[test]
fn an_end_of_turn_that_was_added_as_text_ends_turns() {
    let tokenizer =
        with_token(json!({"id": 6, "content": "<|im_end|>", "special": false, "normalized": false}));
    assert_eq!(tokenizer.eos_ids(), [6]);
    assert_eq!(tokenizer.decode(&[5, 6]).unwrap(), "a");
}
