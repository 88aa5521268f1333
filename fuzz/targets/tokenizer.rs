//! A text, a zero byte, and a tokenizer for it: the metadata of a GGUF file, or a `tokenizer.json`.
#![no_main]

use std::sync::LazyLock;

use deltallm_fuzz::{Directory, one_thread};
use deltallm_models::{ModelFile, StreamDecoder, Tokenizer};
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
        use_it(&tokenizer, &text);
    }
});

fn use_it(tokenizer: &Tokenizer, text: &str) {
    let vocab_size = tokenizer.vocab_size() as u32;
    assert!(tokenizer.token_text(vocab_size - 1).is_ok());
    // Ids from the vocabulary's size on may be padding of the embedding.
    assert!(tokenizer.decode(&[u32::MAX]).is_err());
    let escaped = tokenizer.escape(text);
    let encodings = [
        tokenizer.encode(text, false),
        tokenizer.encode(text, true),
        tokenizer.encode_prompt(&escaped, true),
    ];
    for ids in encodings.into_iter().flatten() {
        let whole = tokenizer.decode(&ids).expect("its own ids");
        let mut stream = StreamDecoder::new(tokenizer);
        let mut pieces = String::new();
        for id in ids {
            pieces.extend(stream.push(id).expect("its own id"));
        }
        pieces.extend(stream.finish());
        assert_eq!(pieces, whole);
    }
}
