//! Bytes as a `config.json`.
#![no_main]

use deltallm_models::ModelConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = ModelConfig::from_json(text) else { return };
    config.validate().expect("what has been read is valid");
    assert_eq!(config.heads % config.kv_heads, 0);
    // Its time grows with the size of a head, which no tensor has confirmed yet.
    if config.head_dim <= 4096 {
        let frequencies =
            config.rope.frequencies(config.head_dim).expect("the size of a head has been checked");
        assert_eq!(frequencies.len(), config.head_dim / 2);
        assert_eq!(config.fingerprint(), config.clone().fingerprint());
    }
});
