//! A text, a zero byte, and a tokenizer for it: the metadata of a GGUF file, or a `tokenizer.json`.
#![no_main]

use std::sync::LazyLock;

use deltallm_fuzz::{Directory, one_thread, use_tokenizer};
use deltallm_models::{ModelFile, Tokenizer};
use libfuzzer_sys::fuzz_target;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("tokenizer"));

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    let (text, file) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 1..]);
    let tokenizer = if file.starts_with(b"GGUF") {
        let Ok(file) = ModelFile::from_gguf_bytes("fuzz", file.to_vec()) else { return };
        Tokenizer::from_model(&file).ok()
    } else {
        DIRECTORY.write("tokenizer.json", file);
        Tokenizer::from_json_file(DIRECTORY.path().join("tokenizer.json")).ok()
    };
    if let Some(tokenizer) = tokenizer {
        use_tokenizer(&tokenizer, &text);
    }
});
