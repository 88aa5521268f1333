//! Parameters that no model can have, in both formats, by name.

use deltallm_models::gguf::{Array, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{ConfigError, ModelConfig, ModelError, ModelFile};
use serde_json::{Value as Json, json};

use crate::common::gguf_writer::GgufWriter;
use crate::common::parameters::{llama_3_2_1b, with};
use crate::common::tiny;
use crate::measured;

/// From a `config.json`.
fn from_json(json: &Json) -> Result<ModelConfig, ConfigError> {
    let text = json.to_string();
    measured(text.len(), || ModelConfig::from_json(&text))
}

fn refused(key: &str, value: Json) -> ConfigError {
    from_json(&with(llama_3_2_1b(), key, value)).expect_err("parameters that must be refused")
}

/// From a GGUF file.
fn config(writer: &GgufWriter) -> Result<ModelConfig, ConfigError> {
    let bytes = writer.finish();
    let result = measured(bytes.len(), || ModelFile::from_gguf_bytes("tiny", bytes)?.config());
    result.map_err(|error| match error {
        ModelError::Config { source, .. } => source,
        other => panic!("expected a configuration error, got {other}"),
    })
}

#[test]
fn other_architectures() {
    let json = |got: &str| {
        let expected =
            "`llama`, `bitnet`, `mistral`, `qwen2`, `qwen3`, `smollm3`, `gemma3_text` and `gemma3`";
        ConfigError::Architecture { expected, got: got.into() }
    };
    for name in ["qwen2_moe", "gemma2", "gemma3n", "mixtral"] {
        assert_eq!(refused("model_type", json!(name)), json(name));
    }
    assert_eq!(refused("model_type", Json::Null), json(""));
    let gguf = |got: &str| {
        let expected =
            "`llama`, `bitnet`, `bitnet-b1.58`, `bitnet-25`, `qwen2`, `qwen3`, `smollm3` and `gemma3`";
        Err(ConfigError::Architecture { expected, got: got.into() })
    };
    for name in ["bloom", "qwen2moe", "gemma2", "qwen2vl"] {
        let writer = tiny::llama().set("general.architecture", Value::String(name.into()));
        assert_eq!(config(&writer), gguf(name));
    }
    assert_eq!(config(&tiny::llama().remove("general.architecture")), gguf(""));
}

#[test]
fn other_activation() {
    let error = ConfigError::Activation { expected: "silu", got: "gelu".into() };
    assert_eq!(refused("hidden_act", json!("gelu")), error);
}

#[test]
fn other_rope_scaling() {
    for name in ["longrope", "proportional", "mrope", "su"] {
        let error = ConfigError::RopeScaling { got: name.into() };
        assert_eq!(refused("rope_parameters", json!({"rope_type": name, "factor": 2.0})), error);
        let writer = tiny::llama().set("llama.rope.scaling.type", Value::String(name.into()));
        assert_eq!(config(&writer), Err(error));
    }
}

#[test]
fn partial_rotation() {
    // The classes of these families rotate all channels, whatever this says.
    for share in [0.0, -0.5, 0.5, 1.5] {
        let within = json!({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share});
        for error in [refused("partial_rotary_factor", json!(share)), refused("rope_parameters", within)] {
            assert!(
                matches!(error, ConfigError::Unsupported { key, .. } if key.ends_with("partial_rotary_factor"))
            );
        }
    }
    // As llama.cpp, which has another order of rows there.
    let writer = tiny::llama().set("llama.rope.dimension_count", Value::U32(2));
    assert!(matches!(config(&writer), Err(ConfigError::Unsupported { got, .. }) if got == "2"));
}

#[test]
fn value_heads_of_another_size() {
    let writer = tiny::llama().set("llama.attention.value_length", Value::U32(8));
    assert!(
        matches!(config(&writer), Err(ConfigError::Unsupported { key, .. }) if key.ends_with("value_length"))
    );
}

#[test]
fn mixture_of_experts() {
    let writer = tiny::llama().set("llama.expert_count", Value::U32(8));
    assert!(matches!(config(&writer), Err(ConfigError::Unsupported { got, .. }) if got == "8"));
}

#[test]
fn heads_that_do_not_divide_the_hidden_size() {
    let mut json = with(llama_3_2_1b(), "num_attention_heads", json!(30));
    json["head_dim"] = Json::Null;
    let error = ConfigError::HiddenNotDivisible { hidden_size: 2048, heads: 30 };
    assert_eq!(from_json(&json), Err(error));
    let writer = tiny::llama().set("llama.attention.head_count", Value::U32(3));
    assert_eq!(config(&writer), Err(ConfigError::HiddenNotDivisible { hidden_size: 8, heads: 3 }));
}

#[test]
fn kv_heads_that_do_not_divide_the_heads() {
    let error = ConfigError::HeadsNotDivisible { heads: 32, kv_heads: 5 };
    assert_eq!(refused("num_key_value_heads", json!(5)), error);
}

#[test]
fn odd_head_size() {
    assert_eq!(refused("head_dim", json!(63)), ConfigError::OddHeadDim { got: 63 });
    let writer = tiny::llama().set("llama.attention.key_length", Value::U32(5));
    assert_eq!(config(&writer), Err(ConfigError::OddHeadDim { got: 5 }));
}

#[test]
fn vocabulary_other_than_the_embedding() {
    let writer = tiny::llama().set("llama.vocab_size", Value::U32(6));
    assert_eq!(config(&writer), Err(ConfigError::Vocabulary { rows: 5, got: 6 }));
}

#[test]
fn no_embedding() {
    let writer = tiny::llama().without_tensor("token_embd.weight");
    assert_eq!(config(&writer), Err(ConfigError::Missing { key: "token_embd.weight".into() }));
}

#[test]
fn epsilon_not_positive() {
    for eps in [0.0, -1e-5] {
        assert!(matches!(refused("rms_norm_eps", json!(eps)), ConfigError::NotPositive { .. }));
    }
    for eps in [0.0, -1e-5, f32::NAN, f32::INFINITY] {
        let writer = tiny::llama().set("llama.attention.layer_norm_rms_epsilon", Value::F32(eps));
        assert!(matches!(config(&writer), Err(ConfigError::NotPositive { what: "norm epsilon", .. })));
    }
}

#[test]
fn theta_not_positive() {
    for theta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let writer = tiny::llama().set("llama.rope.freq_base", Value::F32(theta));
        assert!(matches!(config(&writer), Err(ConfigError::NotPositive { what: "RoPE theta", .. })));
    }
}

#[test]
fn llama3_scaling_out_of_range() {
    let scaling = |key: &str, value: Json| with(llama_3_2_1b()["rope_parameters"].clone(), key, value);
    for key in ["factor", "low_freq_factor", "high_freq_factor"] {
        let error = refused("rope_parameters", scaling(key, json!(0.0)));
        assert!(matches!(error, ConfigError::NotPositive { .. }), "{key}: {error}");
        assert_eq!(
            refused("rope_parameters", scaling(key, Json::Null)),
            ConfigError::Missing { key: key.into() }
        );
    }
    let error = ConfigError::RopeBand { low: 4.0, high: 4.0 };
    assert_eq!(refused("rope_parameters", scaling("low_freq_factor", json!(4.0))), error);
    let error = refused("rope_parameters", scaling("original_max_position_embeddings", json!(0)));
    assert!(matches!(error, ConfigError::Size { got: 0, .. }));
}

#[test]
fn sizes_zero_or_absurd() {
    for key in [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ] {
        for got in [0, 1 << 40, u64::MAX] {
            let error = refused(key, json!(got));
            assert!(matches!(error, ConfigError::Size { got: at, .. } if at == got), "{key} {got}: {error}");
        }
    }
    // Each factor is fine, their product is not.
    let json = with(with(llama_3_2_1b(), "num_attention_heads", json!(1 << 20)), "head_dim", json!(1 << 20));
    assert!(matches!(from_json(&json), Err(ConfigError::Size { .. })));
    for heads in [0, u64::MAX] {
        let writer = tiny::llama().set("llama.attention.head_count", Value::U64(heads));
        assert!(matches!(
            config(&writer),
            Err(ConfigError::Size { .. } | ConfigError::HiddenNotDivisible { .. })
        ));
    }
}

#[test]
fn missing_and_mistyped_parameters() {
    assert_eq!(refused("hidden_size", Json::Null), ConfigError::Missing { key: "hidden_size".into() });
    for value in [json!(-1), json!(1.5), json!("2048"), json!([1])] {
        assert!(matches!(refused("hidden_size", value), ConfigError::WrongType { .. }));
    }
    assert!(matches!(refused("rope_parameters", json!(3)), ConfigError::WrongType { .. }));
    assert!(matches!(from_json(&json!([])), Err(ConfigError::WrongType { .. })));
    let writer = tiny::llama().remove("llama.block_count");
    assert_eq!(config(&writer), Err(ConfigError::Missing { key: "llama.block_count".into() }));
    // Some architectures have a number of heads for each layer; Llama has one.
    let layers =
        [Array::I32(vec![2, 1]), Array::I8(vec![-1]), Array::U8(vec![2; 100_000]), Array::F32(vec![2.0])];
    for heads in layers {
        let writer = tiny::llama().set("llama.attention.head_count", Value::Array(heads));
        assert!(matches!(config(&writer), Err(ConfigError::Unsupported { .. })));
    }
}

#[test]
fn gguf_rope_factors_that_do_not_fit() {
    let error = |writer| config(&writer).unwrap_err();
    let tensor = "rope_freqs.weight";
    let three = tiny::llama().f32_tensor(tensor, &[3], &[1.0; 3]);
    assert_eq!(error(three), ConfigError::RopeFactors { expected: 2, got: 3 });
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let writer = tiny::llama().f32_tensor(tensor, &[2], &[1.0, bad]);
        assert!(matches!(error(writer), ConfigError::NotPositive { .. }));
    }
    let matrix = tiny::llama().f32_tensor(tensor, &[2, 1], &[1.0; 2]);
    assert!(matches!(error(matrix), ConfigError::WrongType { .. }));
    let half = tiny::llama().tensor(tensor, &[2], TensorType::F16, &[0, 60, 0, 60]);
    assert!(matches!(error(half), ConfigError::WrongType { .. }));
    let overflow = tiny::llama().set("llama.rope.scaling.factor", Value::F32(f32::MAX)).f32_tensor(
        tensor,
        &[2],
        &[2.0; 2],
    );
    assert!(matches!(error(overflow), ConfigError::NotPositive { .. }));
}
