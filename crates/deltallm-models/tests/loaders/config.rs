//! Parameters from both formats: what is read, what is refused.

use deltallm_models::gguf::{Array, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{ConfigError, ModelConfig, ModelError, ModelFile, RopeScaling};
use serde_json::{Value as Json, json};

use crate::common::files::fixture;
use crate::tiny;

/// Llama 3.2 1B in the form that its `config.json` has since `transformers` 5.
fn llama_3_2_1b() -> Json {
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

fn with(mut json: Json, key: &str, value: Json) -> Json {
    json[key] = value;
    json
}

fn refused(key: &str, value: Json) -> ConfigError {
    ModelConfig::from_json(&with(llama_3_2_1b(), key, value)).expect_err("parameters that must be refused")
}

fn assert_close(got: &[f32], expected: &[f32]) {
    assert!(got.len() >= expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{i}: expected {expected}, got {got}");
    }
}

#[test]
fn json_of_llama_3_2_1b() {
    let config = ModelConfig::from_json(&llama_3_2_1b()).unwrap();
    assert_eq!((config.hidden_size, config.layers, config.heads, config.kv_heads), (2048, 16, 32, 8));
    assert_eq!((config.head_dim, config.intermediate_size, config.vocab_size), (64, 8192, 128_256));
    assert_eq!((config.norm_eps, config.context_length, config.tie_embeddings), (1e-5, 131_072, true));
    assert_eq!(config.rope.theta, 500_000.0);
    assert_eq!(
        config.rope.scaling,
        RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192
        }
    );
}

/// The expected numbers are `LlamaRotaryEmbedding.inv_freq` of `transformers` 5.
#[test]
fn rope_frequencies_equal_those_of_transformers() {
    let config = ModelConfig::from_json(&llama_3_2_1b()).unwrap();
    let expected = [
        1.0,
        0.6636013,
        0.4403666,
        0.2922278,
        0.1939228,
        0.1286874,
        0.0853971,
        0.05666962,
        0.03760603,
        0.02495541,
        0.01656044,
        0.01098953,
        0.007292665,
        0.004839421,
        0.003211446,
        0.001290548,
        0.0004295567,
        9.708286e-05,
        1.946164e-05,
        1.291477e-05,
        8.570256e-06,
        5.687232e-06,
        3.774054e-06,
        2.504467e-06,
        1.661967e-06,
        1.102884e-06,
        7.318749e-07,
        4.856731e-07,
        3.222933e-07,
        2.138742e-07,
        1.419272e-07,
        9.418307e-08,
    ];
    assert_eq!(config.rope.frequencies(64).len(), expected.len());
    assert_close(&config.rope.frequencies(64), &expected);

    let json = with(llama_3_2_1b(), "rope_parameters", json!({"rope_theta": 1e5, "rope_type": "default"}));
    let rope = ModelConfig::from_json(&json).unwrap().rope;
    assert_close(&rope.frequencies(64), &[1.0, 0.6978306, 0.4869675, 0.3398208]);

    let linear = json!({"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0});
    let rope = ModelConfig::from_json(&with(llama_3_2_1b(), "rope_parameters", linear)).unwrap().rope;
    assert_close(&rope.frequencies(64), &[0.25, 0.1874736, 0.1405853, 0.1054241]);
}

#[test]
fn old_and_new_places_of_rope_parameters_agree() {
    let new = llama_3_2_1b();
    let mut old = new.clone();
    let mut scaling = old.as_object_mut().unwrap().remove("rope_parameters").unwrap();
    old["rope_theta"] = scaling.as_object_mut().unwrap().remove("rope_theta").unwrap();
    // The oldest files say `type`.
    for name in ["rope_type", "type"] {
        let mut scaling = scaling.clone();
        let kind = scaling.as_object_mut().unwrap().remove("rope_type").unwrap();
        scaling[name] = kind;
        let old = with(old.clone(), "rope_scaling", scaling);
        assert_eq!(ModelConfig::from_json(&old), ModelConfig::from_json(&new));
    }
}

#[test]
fn json_defaults() {
    let mut json = llama_3_2_1b();
    for key in ["num_key_value_heads", "head_dim", "rope_parameters", "tie_word_embeddings", "rms_norm_eps"] {
        json[key] = Json::Null;
    }
    let config = ModelConfig::from_json(&json).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.tie_embeddings), (32, 64, false));
    assert_eq!(
        (config.norm_eps, config.rope.theta, config.rope.scaling),
        (1e-6, 10_000.0, RopeScaling::None)
    );
}

#[test]
fn json_bias_flags() {
    let json = with(with(llama_3_2_1b(), "attention_bias", json!(true)), "mlp_bias", json!(true));
    let config = ModelConfig::from_json(&json).unwrap();
    assert!(config.attention_bias && config.attention_output_bias && config.mlp_bias);
}

#[test]
fn other_architectures() {
    let json = |got: &str| ConfigError::Architecture { expected: "`llama` and `bitnet`", got: got.into() };
    assert_eq!(refused("model_type", json!("qwen2")), json("qwen2"));
    assert_eq!(refused("model_type", Json::Null), json(""));
    let gguf = |got: &str| {
        let expected = "`llama`, `bitnet`, `bitnet-b1.58` and `bitnet-25`";
        Err(ConfigError::Architecture { expected, got: got.into() })
    };
    let writer = tiny::llama().set("general.architecture", Value::String("bloom".into()));
    assert_eq!(tiny::config(&writer), gguf("bloom"));
    assert_eq!(tiny::config(&tiny::llama().remove("general.architecture")), gguf(""));
}

#[test]
fn other_activation() {
    let error = ConfigError::Activation { expected: "silu", got: "gelu".into() };
    assert_eq!(refused("hidden_act", json!("gelu")), error);
}

#[test]
fn other_rope_scaling() {
    for name in ["yarn", "dynamic", "longrope"] {
        let error = ConfigError::RopeScaling { got: name.into() };
        assert_eq!(refused("rope_parameters", json!({"rope_type": name, "factor": 2.0})), error);
        let writer = tiny::llama().set("llama.rope.scaling.type", Value::String(name.into()));
        assert_eq!(tiny::config(&writer), Err(error));
    }
}

#[test]
fn partial_rotation() {
    assert!(matches!(refused("partial_rotary_factor", json!(0.5)), ConfigError::Unsupported { .. }));
    let writer = tiny::llama().set("llama.rope.dimension_count", Value::U32(2));
    assert!(matches!(tiny::config(&writer), Err(ConfigError::Unsupported { got, .. }) if got == "2"));
}

#[test]
fn value_heads_of_another_size() {
    let writer = tiny::llama().set("llama.attention.value_length", Value::U32(8));
    assert!(
        matches!(tiny::config(&writer), Err(ConfigError::Unsupported { key, .. }) if key.ends_with("value_length"))
    );
}

#[test]
fn mixture_of_experts() {
    let writer = tiny::llama().set("llama.expert_count", Value::U32(8));
    assert!(matches!(tiny::config(&writer), Err(ConfigError::Unsupported { got, .. }) if got == "8"));
}

#[test]
fn heads_that_do_not_divide_the_hidden_size() {
    let mut json = with(llama_3_2_1b(), "num_attention_heads", json!(30));
    json["head_dim"] = Json::Null;
    let error = ConfigError::HiddenNotDivisible { hidden_size: 2048, heads: 30 };
    assert_eq!(ModelConfig::from_json(&json), Err(error));
    let writer = tiny::llama().set("llama.attention.head_count", Value::U32(3));
    assert_eq!(tiny::config(&writer), Err(ConfigError::HiddenNotDivisible { hidden_size: 8, heads: 3 }));
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
    assert_eq!(tiny::config(&writer), Err(ConfigError::OddHeadDim { got: 5 }));
}

#[test]
fn vocabulary_other_than_the_embedding() {
    let writer = tiny::llama().set("llama.vocab_size", Value::U32(6));
    assert_eq!(tiny::config(&writer), Err(ConfigError::Vocabulary { rows: 5, got: 6 }));
}

#[test]
fn no_embedding() {
    let writer = tiny::llama().without_tensor("token_embd.weight");
    assert_eq!(tiny::config(&writer), Err(ConfigError::Missing { key: "token_embd.weight".into() }));
}

#[test]
fn epsilon_not_positive() {
    for eps in [0.0, -1e-5] {
        assert!(matches!(refused("rms_norm_eps", json!(eps)), ConfigError::NotPositive { .. }));
    }
    for eps in [0.0, -1e-5, f32::NAN, f32::INFINITY] {
        let writer = tiny::llama().set("llama.attention.layer_norm_rms_epsilon", Value::F32(eps));
        assert!(matches!(tiny::config(&writer), Err(ConfigError::NotPositive { what: "norm epsilon", .. })));
    }
}

#[test]
fn theta_not_positive() {
    for theta in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let writer = tiny::llama().set("llama.rope.freq_base", Value::F32(theta));
        assert!(matches!(tiny::config(&writer), Err(ConfigError::NotPositive { what: "RoPE theta", .. })));
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
    assert!(matches!(ModelConfig::from_json(&json), Err(ConfigError::Size { .. })));
    for heads in [0, u64::MAX] {
        let writer = tiny::llama().set("llama.attention.head_count", Value::U64(heads));
        assert!(matches!(
            tiny::config(&writer),
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
    assert!(matches!(ModelConfig::from_json(&json!([])), Err(ConfigError::WrongType { .. })));
    let writer = tiny::llama().remove("llama.block_count");
    assert_eq!(tiny::config(&writer), Err(ConfigError::Missing { key: "llama.block_count".into() }));
    // Some architectures have a number of heads for each layer; Llama has one.
    let writer = tiny::llama().set("llama.attention.head_count", Value::Array(Array::I32(vec![2])));
    assert!(matches!(tiny::config(&writer), Err(ConfigError::Gguf(_))));
}

#[test]
fn gguf_rope_factors() {
    let writer = tiny::llama().f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]);
    let config = tiny::config(&writer).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Factors(vec![1.0, 8.0]));
    assert_close(&config.rope.frequencies(4), &[1.0, 0.01 / 8.0]);
}

#[test]
fn gguf_rope_factors_that_do_not_fit() {
    let error = |writer| tiny::config(&writer).unwrap_err();
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
    let twice = tiny::llama()
        .set("llama.rope.scaling.type", Value::String("linear".into()))
        .set("llama.rope.scaling.factor", Value::F32(2.0))
        .f32_tensor(tensor, &[2], &[1.0; 2]);
    assert!(matches!(error(twice), ConfigError::Unsupported { .. }));
}

#[test]
fn gguf_linear_scaling() {
    let linear = tiny::llama().set("llama.rope.scaling.type", Value::String("linear".into()));
    let error = ConfigError::Missing { key: "llama.rope.scaling.factor".into() };
    assert_eq!(tiny::config(&linear), Err(error));
    let config = tiny::config(&linear.set("llama.rope.scaling.factor", Value::F32(4.0))).unwrap();
    assert_close(&config.rope.frequencies(4), &[0.25, 0.0025]);
}

#[test]
fn fingerprint_is_stable_and_tells_models_apart() {
    let base = ModelConfig::from_json(&llama_3_2_1b()).unwrap();
    // Profiles on disk carry this number: it must never change.
    assert_eq!(base.fingerprint(), 0xcc90_c7d9_6f18_4b55);
    let changes: [fn(&mut ModelConfig); 5] = [
        |config| config.layers += 1,
        |config| config.kv_heads = 4,
        |config| config.vocab_size += 1,
        |config| config.rope.theta *= 2.0,
        |config| config.rope.scaling = RopeScaling::None,
    ];
    for change in changes {
        let mut other = base.clone();
        change(&mut other);
        assert_ne!(other.fingerprint(), base.fingerprint(), "{other:?}");
    }
    let mut same = base.clone();
    same.context_length = 1024;
    assert_eq!(same.fingerprint(), base.fingerprint());
}

#[test]
fn both_formats_of_one_model_have_one_fingerprint() {
    for name in ["gqa1-d32", "gqa3-d64-llama3"] {
        let directory = fixture("llama").join(name);
        let gguf = ModelFile::open(directory.join("model.gguf")).unwrap().config().unwrap();
        let json = ModelFile::open(&directory).unwrap().config().unwrap();
        assert_eq!(gguf.fingerprint(), json.fingerprint(), "{name}");
        assert_close(&gguf.rope.frequencies(gguf.head_dim), &json.rope.frequencies(json.head_dim));
    }
}

#[test]
fn errors_name_the_file() {
    let error = tiny::open(&tiny::llama().set("llama.vocab_size", Value::U32(6))).config().unwrap_err();
    assert!(matches!(error, ModelError::Config { .. }));
    assert_eq!(error.to_string(), "tiny: vocabulary: expected 5 as the embedding has rows, got 6");
}
