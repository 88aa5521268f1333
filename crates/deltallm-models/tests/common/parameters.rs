//! Parameters of a published model, to be changed in one place by each test.

use serde_json::{Value as Json, json};

/// Llama 3.2 1B in the form that its `config.json` has since `transformers` 5.
pub(crate) fn llama_3_2_1b() -> Json {
    json!({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    })
}

/// With another value for a key.
pub(crate) fn with(mut json: Json, key: &str, value: Json) -> Json {
    json[key] = value;
    json
}
