//! Parameters from both formats: what is read, what is refused.

use deltallm_core::ModelFingerprint;
use deltallm_models::gguf::Value;
use deltallm_models::{ModelConfig, ModelError, ModelFile, RopeScaling};
use serde_json::{Value as Json, json};

use crate::common::files::fixture;
use crate::common::parameters::{llama_3_2_1b, with};
use crate::common::tiny;

fn assert_close(got: &[f32], expected: &[f32]) {
    assert!(got.len() >= expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{i}: expected {expected}, got {got}");
    }
}

#[test]
fn json_of_llama_3_2_1b() {
    let config = ModelConfig::from_json(&llama_3_2_1b().to_string()).unwrap();
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
    let config = ModelConfig::from_json(&llama_3_2_1b().to_string()).unwrap();
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
    assert_eq!(config.rope.frequencies(64).unwrap().len(), expected.len());
    assert_close(&config.rope.frequencies(64).unwrap(), &expected);

    let json = with(llama_3_2_1b(), "rope_parameters", json!({"rope_theta": 1e5, "rope_type": "default"}));
    let rope = ModelConfig::from_json(&json.to_string()).unwrap().rope;
    assert_close(&rope.frequencies(64).unwrap(), &[1.0, 0.6978306, 0.4869675, 0.3398208]);

    let linear = json!({"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0});
    let json = with(llama_3_2_1b(), "rope_parameters", linear);
    let rope = ModelConfig::from_json(&json.to_string()).unwrap().rope;
    assert_close(&rope.frequencies(64).unwrap(), &[0.25, 0.1874736, 0.1405853, 0.1054241]);
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
        assert_eq!(ModelConfig::from_json(&old.to_string()), ModelConfig::from_json(&new.to_string()));
    }
}

#[test]
fn json_defaults() {
    let mut json = llama_3_2_1b();
    for key in ["num_key_value_heads", "head_dim", "rope_parameters", "tie_word_embeddings", "rms_norm_eps"] {
        json[key] = Json::Null;
    }
    let config = ModelConfig::from_json(&json.to_string()).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.tie_embeddings), (32, 64, false));
    assert_eq!(
        (config.norm_eps, config.rope.theta, config.rope.scaling),
        (1e-6, 10_000.0, RopeScaling::None)
    );
}

/// Those of llama.cpp.
#[test]
fn gguf_defaults() {
    let optional = ["llama.attention.head_count_kv", "llama.vocab_size", "llama.rope.freq_base"];
    let config = tiny::config(&optional.into_iter().fold(tiny::llama(), |writer, key| writer.remove(key)));
    let config = config.unwrap();
    assert_eq!(
        (config.kv_heads, config.head_dim, config.vocab_size),
        (tiny::HEADS, tiny::HEAD_DIM, tiny::VOCAB)
    );
    assert_eq!((config.rope.theta, config.rope.scaling), (10_000.0, RopeScaling::None));
}

#[test]
fn json_bias_flags() {
    let json = with(with(llama_3_2_1b(), "attention_bias", json!(true)), "mlp_bias", json!(true));
    let config = ModelConfig::from_json(&json.to_string()).unwrap();
    assert!(config.attention_bias && config.attention_output_bias && config.mlp_bias);
}

#[test]
fn gguf_rope_factors() {
    let writer = tiny::llama().f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]);
    let config = tiny::config(&writer).unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Factors(vec![1.0, 8.0]));
    assert_close(&config.rope.frequencies(4).unwrap(), &[1.0, 0.01 / 8.0]);
}

#[test]
fn gguf_linear_scaling() {
    let linear = tiny::llama().set("llama.rope.scaling.type", Value::String("linear".into()));
    let config = tiny::config(&linear.set("llama.rope.scaling.factor", Value::F32(4.0))).unwrap();
    assert_close(&config.rope.frequencies(4).unwrap(), &[0.25, 0.0025]);
}

#[test]
fn fingerprint_is_stable_and_tells_models_apart() {
    let base = ModelConfig::from_json(&llama_3_2_1b().to_string()).unwrap();
    // Profiles on disk carry this number: it must never change.
    assert_eq!(base.fingerprint(), ModelFingerprint(0xcc90_c7d9_6f18_4b55));
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
        assert_close(
            &gguf.rope.frequencies(gguf.head_dim).unwrap(),
            &json.rope.frequencies(json.head_dim).unwrap(),
        );
    }
}

#[test]
fn errors_name_the_file() {
    let error = tiny::open(&tiny::llama().set("llama.vocab_size", Value::U32(6))).config().unwrap_err();
    assert!(matches!(error, ModelError::Config { .. }));
    assert_eq!(error.to_string(), "tiny: vocabulary: expected 5 as the embedding has rows, got 6");
}
