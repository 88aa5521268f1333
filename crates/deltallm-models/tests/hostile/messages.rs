//! Names and values out of files that are longer than any message, or that a terminal would obey: shown as text, and cut.

use std::fs;

use deltallm_models::gguf::Value;
use deltallm_models::{ModelFile, Tokenizer};
use serde_json::json;

use crate::common::files::{directory, fixture};
use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;

/// Clears the screen, turns the direction of writing, ends the line, and goes on for three megabytes.
fn hostile() -> String {
    format!("\u{1b}[2J\u{202e}\n\r\u{9b}{}", "x".repeat(3_000_000))
}

/// An error and its causes.
fn check(error: &dyn std::error::Error) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let message = error.to_string();
        assert!(message.len() < 5000, "a message of {} bytes", message.len());
        assert!(!message.chars().any(|c| c.is_control() || c == '\u{202e}'), "{message:?}");
        cause = error.source();
    }
    let message = error.to_string();
    assert!(!message.contains("2J") || message.contains(r"\u{202e}\n\r\u{9b}xxx"), "{message}");
}

#[test]
fn names_in_gguf_files_are_shown_as_text() {
    let text = hostile();
    let open = |writer: &GgufWriter| ModelFile::from_gguf_bytes("tiny", writer.finish());
    let twice = GgufWriter::new().raw_entry(&text, 0, &[1]).raw_entry(&text, 0, &[1]);
    check(&open(&twice).unwrap_err());
    check(&open(&GgufWriter::new().raw_entry(&text, 99, &[1])).unwrap_err());
    check(&open(&tiny::llama().raw_tensor(text.as_bytes(), &[8], 0, 3)).unwrap_err());
    let other = tiny::llama().set("general.architecture", Value::String(text.clone()));
    check(&open(&other).unwrap().config().unwrap_err());
    for key in ["model", "pre"] {
        let file = tiny::llama()
            .set("tokenizer.ggml.model", Value::String("gpt2".into()))
            .set(&format!("tokenizer.ggml.{key}"), Value::String(text.clone()))
            .set(
                "tokenizer.ggml.tokens",
                Value::Array(deltallm_models::gguf::Array::String(vec!["a".into()])),
            )
            .set("tokenizer.ggml.merges", Value::Array(deltallm_models::gguf::Array::String(vec![])));
        check(&Tokenizer::from_model(&open(&file).unwrap()).unwrap_err());
    }
}

#[test]
fn values_in_json_files_are_shown_as_text() {
    let text = hostile();
    let short: String = text.chars().take(500_000).collect();
    let path = directory("messages");
    fs::copy(fixture("llama/gqa1-d32/model.safetensors"), path.join("model.safetensors")).unwrap();
    let twice = |text: &str| format!("{{{0}:1,{0}:1}}", json!(text));
    for config in [json!({"model_type": short}).to_string(), twice(&short)] {
        fs::write(path.join("config.json"), config).unwrap();
        check(&ModelFile::open(&path).and_then(|file| file.config()).unwrap_err());
    }
    let model = json!({"type": text});
    let decoder = json!({"type": "Replace", "pattern": {"String": text}, "content": text});
    let whole = json!({"type": "BPE", "vocab": {"a": 0}, "merges": []});
    let merges = json!({"type": "BPE", "vocab": {"a": 0}, "merges": [text]});
    let bytes = json!({"type": "ByteLevel"});
    for tokenizer in [
        twice(&text),
        json!({"model": model}).to_string(),
        json!({"model": whole, "decoder": decoder}).to_string(),
        json!({"model": whole, "decoder": bytes, "normalizer": {"type": text}}).to_string(),
        json!({"model": merges, "decoder": bytes}).to_string(),
        json!({"model": {"type": "BPE", "vocab": text, "merges": []}}).to_string(),
    ] {
        fs::write(path.join("tokenizer.json"), tokenizer).unwrap();
        check(&Tokenizer::from_json_file(path.join("tokenizer.json")).unwrap_err());
    }
}

#[test]
#[cfg(unix)]
fn files_without_an_end_are_not_read_to_it() {
    use deltallm_models::TokenizerError;
    let path = directory("endless").join("tokenizer.json");
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let error = Tokenizer::from_json_file(&path).unwrap_err();
    assert!(
        matches!(error, TokenizerError::FileTooLarge { limit: 67_108_864, got: 67_108_865, .. }),
        "{error}"
    );
}
