//! `config.json` and `tokenizer.json` as files.

use std::fs;

use deltallm_models::{ModelError, ModelFile, Tokenizer, TokenizerError};

use crate::common::files::{TooLong, directory, fixture};
use crate::measured;

fn config(name: &str, text: &str) -> ModelError {
    let path = directory(name);
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    fs::write(path.join("config.json"), text).unwrap();
    measured(text.len(), || ModelFile::open(&path)?.config()).expect_err("a file that must be refused")
}

fn tokenizer(name: &str, text: &[u8]) -> Result<Tokenizer, TokenizerError> {
    let path = directory(name).join("tokenizer.json");
    fs::write(&path, text).unwrap();
    measured(text.len(), || Tokenizer::from_json_file(&path))
}

/// A tokenizer of these tokens.
fn vocabulary(tokens: &str) -> String {
    format!(
        r#"{{"decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},
        "model":{{"type":"BPE","vocab":{{{tokens}}},"merges":[]}}}}"#
    )
}

#[test]
fn a_config_with_a_key_twice() {
    for text in [r#"{"hidden_size":8,"hidden_size":8}"#, r#"{"rope_parameters":{"factor":2,"factor":4}}"#] {
        let error = config("config-twice", text);
        assert!(matches!(&error, ModelError::Json { file, .. } if file.ends_with("config.json")), "{error}");
        assert!(error.to_string().contains("every key once"), "{error}");
    }
}

#[test]
fn a_config_that_is_nested_too_deep() {
    for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        let error = config("config-nested", &text);
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
}

#[test]
fn a_config_of_other_bytes_than_json() {
    for text in ["", "{", "\u{feff}{}", "\0", "{\"hidden_size\": 1e999}", "nan"] {
        assert!(matches!(config("config-bytes", text), ModelError::Json { .. }), "{text:?}");
    }
}

#[test]
fn a_config_that_is_no_object() {
    for text in ["[]", "3", "null", "\"llama\""] {
        assert!(matches!(config("config-object", text), ModelError::Config { .. }), "{text:?}");
    }
}

#[test]
fn a_config_that_grows_when_it_is_read() {
    // An empty array takes ten times as many bytes as it has characters.
    let text = format!("{{\"hidden_size\":[{}[]]}}", "[],".repeat(349_000));
    assert!(text.len() < 1 << 20);
    let path = directory("config-grows");
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    fs::write(path.join("config.json"), format!("{text}{text}")).unwrap();
    let error = measured(text.len(), || ModelFile::open(&path)).unwrap_err();
    assert!(matches!(error, ModelError::FileTooLarge { limit: 1_048_576, .. }), "{error}");
}

#[test]
fn a_tokenizer_larger_than_any_real_one() {
    let path = directory("tokenizer-large").join("tokenizer.json");
    let _file = TooLong::new(path.clone());
    let error = measured(0, || Tokenizer::from_json_file(&path)).unwrap_err();
    assert!(matches!(error, TokenizerError::FileTooLarge { got, .. } if got == TooLong::BYTES), "{error}");
}

#[test]
fn files_beside_a_tokenizer_larger_than_any_real_one() {
    for name in ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        let folder = directory("tokenizer-beside");
        fs::write(folder.join("tokenizer.json"), vocabulary(r#""a":0"#)).unwrap();
        let _file = TooLong::new(folder.join(name));
        let error = measured(0, || Tokenizer::from_json_file(folder.join("tokenizer.json"))).unwrap_err();
        assert!(
            matches!(&error, TokenizerError::FileTooLarge { path, .. } if path.ends_with(name)),
            "{error}"
        );
    }
}

#[test]
fn a_tokenizer_that_is_nested_too_deep() {
    for text in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
        assert!(matches!(tokenizer("tokenizer-nested", text.as_bytes()), Err(TokenizerError::Json { .. })));
    }
}

#[test]
fn a_tokenizer_that_is_not_utf8() {
    let mut text = vocabulary(r#""x":0"#).into_bytes();
    let place = text.iter().position(|byte| *byte == b'x').unwrap();
    text[place] = 0xff;
    assert!(matches!(tokenizer("tokenizer-utf8", &text), Err(TokenizerError::Json { .. })));
}

#[test]
fn a_vocabulary_with_a_token_twice() {
    let error = tokenizer("token-twice", vocabulary(r#""a":0,"b":1,"a":2"#).as_bytes()).unwrap_err();
    let TokenizerError::Json { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("every key once, got `a` twice"), "{source}");
}

#[test]
fn a_vocabulary_with_an_id_twice() {
    let error = tokenizer("id-twice", vocabulary(r#""a":0,"b":0"#).as_bytes()).unwrap_err();
    assert!(matches!(error, TokenizerError::DuplicateId { id: 0, .. }), "{error}");
}

#[test]
fn a_vocabulary_of_holes() {
    // What is kept for each id would be many times the file.
    for id in [20_000, (1 << 20) - 1, 1 << 20, u32::MAX] {
        let error = tokenizer("holes", vocabulary(&format!(r#""a":0,"b":{id}"#)).as_bytes()).unwrap_err();
        assert!(
            matches!(error, TokenizerError::VocabularyTooLarge { limit: 16_386, got } if got == id as usize + 1),
            "{error}"
        );
    }
    assert!(tokenizer("holes", vocabulary(r#""a":0,"b":1000"#).as_bytes()).is_ok());
}
