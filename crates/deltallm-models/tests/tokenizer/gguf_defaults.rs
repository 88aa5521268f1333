//! What a GGUF vocabulary means where the file does not say: as llama.cpp has it.

use deltallm_models::gguf::{Array, Value};
use deltallm_models::{GgufVocabulary, ModelError, ModelFile, Tokenizer, TokenizerError};

use crate::gguf_writer::GgufWriter;
use crate::{refused, tiny};

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().map(|text| (*text).into()).collect()))
}

/// The metadata of [`tiny`].
fn file() -> GgufWriter {
    GgufWriter::new()
        .set("tokenizer.ggml.model", Value::String("gpt2".into()))
        .set("tokenizer.ggml.pre", Value::String("gpt-2".into()))
        .set("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<|im_end|>"]))
        .set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1, 1, 1, 3])))
        .set("tokenizer.ggml.merges", strings(&["a b"]))
}

fn read(file: &GgufWriter) -> Result<Tokenizer, ModelError> {
    Tokenizer::from_model(&ModelFile::from_gguf_bytes("tiny", file.finish())?)
}

#[test]
fn llama_3_and_sentencepiece_vocabularies_add_bos_unless_the_file_says_no() {
    for (pre, adds) in [
        ("llama-bpe", true),
        ("llama3", true),
        ("llama-v3", true),
        ("gpt-2", false),
        ("smollm", false),
        ("default", false),
    ] {
        let vocabulary = GgufVocabulary { pre: Some(pre), bos: Some(3), ..tiny() };
        let encode = |add_bos| {
            let vocabulary = GgufVocabulary { add_bos, ..vocabulary.clone() };
            Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap().encode("a", true).unwrap()
        };
        let (with, without) = (vec![3, 0], vec![0]);
        assert_eq!(encode(None), *if adds { &with } else { &without }, "{pre}");
        assert_eq!((encode(Some(true)), encode(Some(false))), (with, without), "{pre}");
    }
}

#[test]
fn sentencepiece_vocabularies_have_bos_1_and_eos_2_unless_the_file_says_otherwise() {
    let vocabulary = GgufVocabulary {
        model: "llama",
        tokens: vec!["<unk>", "<s>", "<end>", "▁", "a", "▁a", "<t>"],
        scores: &[0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 0.0],
        token_types: &[2, 3, 3, 1, 1, 1, 3],
        ..GgufVocabulary::default()
    };
    let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(1), &[2][..]));
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, 5]);
    let tokenizer = Tokenizer::from_gguf_vocabulary(&GgufVocabulary {
        bos: Some(6),
        eos: Some(1),
        add_eos: Some(true),
        ..vocabulary
    })
    .unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (Some(6), &[1][..]));
    assert_eq!(tokenizer.encode("a", true).unwrap(), [6, 5, 1]);
}

#[test]
fn a_token_to_be_added_that_the_file_does_not_name_is_refused() {
    let error = refused(&GgufVocabulary { add_bos: Some(true), ..tiny() });
    assert!(matches!(error, TokenizerError::MissingSpecialToken { key: "bos_token_id" }), "{error}");
    let error = refused(&GgufVocabulary { add_eos: Some(true), ..tiny() });
    assert!(matches!(error, TokenizerError::MissingSpecialToken { key: "eos_token_id" }), "{error}");
}

#[test]
fn a_byte_level_vocabulary_without_merges_is_refused_by_the_name_of_the_key() {
    let error = read(&file().remove("tokenizer.ggml.merges")).unwrap_err();
    assert!(error.to_string().ends_with("metadata `tokenizer.ggml.merges` is missing"), "{error}");
    // No merges are meant where the file says so.
    let tokenizer = read(&file().set("tokenizer.ggml.merges", strings(&[]))).unwrap();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [0, 1]);
}

#[test]
fn the_id_minus_one_is_no_token() {
    for none in [Value::U32(u32::MAX), Value::U64(u64::MAX), Value::I32(-1), Value::I64(-1)] {
        let file = ["bos", "eos", "eot", "eom", "unknown"]
            .into_iter()
            .fold(file(), |file, name| file.set(&format!("tokenizer.ggml.{name}_token_id"), none.clone()));
        let tokenizer = read(&file).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (None, &[3][..]), "{none:?}");
        assert_eq!(tokenizer.encode("ab", true).unwrap(), [2]);
    }
    for beyond in [Value::U32(4), Value::I32(-2), Value::U32(u32::MAX - 1)] {
        assert!(read(&file().set("tokenizer.ggml.bos_token_id", beyond.clone())).is_err(), "{beyond:?}");
    }
}

#[test]
fn keys_of_a_tokenizer_are_used_known_to_change_nothing_or_refused_by_name() {
    for (key, value) in [
        ("ggml.padding_token_id", Value::U32(0)),
        ("ggml.seperator_token_id", Value::U32(0)),
        ("ggml.fim_pre_token_id", Value::U32(0)),
        ("ggml.middle_token_id", Value::U32(0)),
        ("ggml.token_type_count", Value::U32(1)),
        ("ggml.remove_extra_whitespaces", Value::Bool(true)),
        ("ggml.add_sep_token", Value::Bool(false)),
        ("ggml.add_space_prefix", Value::Bool(true)),
        ("huggingface.json", Value::String("{}".into())),
        ("chat_template", Value::String("a".into())),
        ("chat_template.tool_use", Value::String("b".into())),
    ] {
        let tokenizer = read(&file().set(&format!("tokenizer.{key}"), value)).unwrap();
        assert_eq!(tokenizer.encode("ab", true).unwrap(), [2], "{key}");
    }
    for (key, value, got) in [
        ("ggml.add_sep_token", Value::Bool(true), "true"),
        ("ggml.normalizer.lowercase", Value::Bool(true), "true"),
        ("ggml.add_bos", Value::Bool(true), "true"),
        ("ggml.suppress_tokens", Value::U32(3), "u32"),
        ("ggml.bos_token", Value::String("a".into()), "string"),
        ("unheard", Value::U8(1), "u8"),
    ] {
        let key = format!("tokenizer.{key}");
        let error = read(&file().set(&key, value)).map(drop).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(&format!("metadata `{key}`")) && source.ends_with(got), "{source}");
    }
}

#[test]
fn several_tokens_without_a_text_are_read() {
    for model in ["gpt2", "llama"] {
        let vocabulary = GgufVocabulary {
            model,
            tokens: vec!["a", "b", "ab", "", "", "c"],
            scores: if model == "llama" { &[-1.0; 6] } else { &[] },
            token_types: &[1; 6],
            add_bos: Some(false),
            add_space_prefix: Some(false),
            ..tiny()
        };
        let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
        assert_eq!(tokenizer.encode("abc", false).unwrap(), [2, 5], "{model}");
        assert_eq!(tokenizer.decode(&[2, 3, 4, 5]).unwrap(), "abc", "{model}");
    }
}

#[test]
fn ends_of_turns_are_known_by_their_text_whatever_type_the_file_gives_them() {
    for name in [
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<|end|>",
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<end_of_utterance>",
        "<|return|>",
        "<|call|>",
        "<|file_sep|>",
        "<|fim_pad|>",
        "<｜end▁of▁sentence｜>",
    ] {
        for kind in [3, 4, 1] {
            let vocabulary = GgufVocabulary {
                tokens: vec!["a", "b", "ab", name, "<eos-of-file>"],
                token_types: &[1, 1, 1, kind, 3],
                eos: Some(4),
                ..tiny()
            };
            let tokenizer = Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap();
            assert_eq!(tokenizer.eos_ids(), [4, 3], "{name} of type {kind}");
            // It is a control token then: no part of an answer, and not to be had by plain text.
            assert_eq!(tokenizer.decode(&[0, 3]).unwrap(), "a", "{name} of type {kind}");
            assert!(!tokenizer.encode(name, false).unwrap().contains(&3), "{name} of type {kind}");
            assert_eq!(tokenizer.encode_prompt(&format!("a{name}"), false).unwrap(), [0, 3]);
        }
    }
}

#[test]
fn the_end_of_a_message_is_no_end_of_turn_where_tools_are_called() {
    let vocabulary = GgufVocabulary {
        tokens: vec!["a", "b", "ab", "<|end|>", "<|call|>", "<|return|>"],
        token_types: &[1, 1, 1, 3, 3, 3],
        ..tiny()
    };
    assert_eq!(Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap().eos_ids(), [5, 4]);
}

#[test]
fn eot_and_eom_of_the_file_end_an_answer() {
    let vocabulary = GgufVocabulary { eos: Some(0), eot: Some(1), eom: Some(2), ..tiny() };
    assert_eq!(Tokenizer::from_gguf_vocabulary(&vocabulary).unwrap().eos_ids(), [0, 1, 2, 3]);
}
