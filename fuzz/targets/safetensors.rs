//! A model directory: `config.json`, a zero byte, `model.safetensors`.
#![no_main]

use std::sync::LazyLock;

use deltallm_fuzz::{Directory, one_thread, run_model};
use deltallm_models::ModelFile;
use libfuzzer_sys::fuzz_target;

static DIRECTORY: LazyLock<Directory> = LazyLock::new(|| Directory::new("safetensors"));

fuzz_target!(init: one_thread(), |bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == 0) else { return };
    DIRECTORY.write("config.json", &bytes[..end]);
    DIRECTORY.write("model.safetensors", &bytes[end + 1..]);
    if let Ok(file) = ModelFile::open(DIRECTORY.path()) {
        run_model(file);
    }
});
