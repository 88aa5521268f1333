//! A text, a zero byte, and the steps of a `tokenizer.json`: a JSON object whose fields replace those of a small file that is valid.
#![no_main]

use std::sync::LazyLock;

use deltallm_fuzz::{Directory, one_thread, use_tokenizer};
use deltallm_models::Tokenizer;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("steps"));

const FILE: &str = r#"{
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
    "decoder": {"type": "ByteFallback"},
    "model": {"type": "BPE", "unk_token": "<unk>", "vocab": {"<unk>": 0, "<s>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5}, "merges": [["▁", "a"]]}
}"#;

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    let Ok(steps) = serde_json::from_slice::<Map<String, Value>>(&bytes[end + 1..]) else { return };
    let mut file: Map<String, Value> = serde_json::from_str(FILE).expect("a valid file");
    file.extend(steps);
    DIRECTORY.write("tokenizer.json", Value::Object(file).to_string().as_bytes());
    if let Ok(tokenizer) = Tokenizer::from_json_file(DIRECTORY.path().join("tokenizer.json")) {
        use_tokenizer(&tokenizer, &String::from_utf8_lossy(&bytes[..end]));
    }
});
