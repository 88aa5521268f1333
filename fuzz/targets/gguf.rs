//! Bytes as a GGUF file: header, parameters, tokenizer's metadata, weights, and a few tokens through the model.
#![no_main]

use deltallm_fuzz::{one_thread, run_model};
use deltallm_models::ModelFile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let Ok(file) = ModelFile::from_gguf_bytes("fuzz", bytes.to_vec()) else { return };
    let header = file.gguf().expect("a GGUF file has a header");
    for tensor in header.tensors() {
        assert!(tensor.range.end <= bytes.len(), "{tensor:?}");
        assert_eq!(header.tensor(&tensor.name), Some(tensor));
    }
    run_model(file);
});
