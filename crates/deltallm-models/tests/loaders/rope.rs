//! RoPE scaling that is said in two ways, or half.

use deltallm_models::gguf::Value;
use deltallm_models::{ConfigError, ModelConfig, RopeScaling};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::common::files::fixture;
use crate::common::parameters::{llama_3_2_1b, with};
use crate::common::tiny;

/// The scaling of a GGUF file with that type, factor and factor under the old key.
fn gguf(kind: Option<&str>, factor: Option<f32>, old: Option<f32>) -> RopeScaling {
    let mut writer = tiny::llama();
    if let Some(kind) = kind {
        writer = writer.set("llama.rope.scaling.type", Value::String(kind.into()));
    }
    for (key, factor) in [("rope.scaling.factor", factor), ("rope.scale_linear", old)] {
        if let Some(factor) = factor {
            writer = writer.set(&format!("llama.{key}"), Value::F32(factor));
        }
    }
    tiny::config(&writer).unwrap().rope.scaling
}

/// As llama.cpp reads them.
#[test]
fn a_factor_in_a_gguf_file_is_linear_unless_the_type_says_otherwise() {
    let by = |factor| RopeScaling::Linear { factor };
    for (kind, factor, old, expected) in [
        (None, None, None, RopeScaling::None),
        (None, Some(4.0), None, by(4.0)),
        (None, None, Some(4.0), by(4.0)),
        (None, Some(4.0), Some(2.0), by(4.0)),
        (Some("linear"), Some(4.0), None, by(4.0)),
        (Some("linear"), None, Some(4.0), by(4.0)),
        (Some("linear"), None, None, RopeScaling::None),
        (Some("linear"), Some(1.0), None, RopeScaling::None),
        (Some("linear"), Some(0.0), None, RopeScaling::None),
        (Some("none"), Some(4.0), None, RopeScaling::None),
        (Some("none"), None, Some(4.0), RopeScaling::None),
    ] {
        assert_eq!(gguf(kind, factor, old), expected, "{kind:?} {factor:?} {old:?}");
    }
}

#[test]
fn factors_of_single_frequencies_come_on_top_of_that_of_all() {
    let writer = tiny::llama().set("llama.rope.scaling.factor", Value::F32(4.0)).f32_tensor(
        "rope_freqs.weight",
        &[2],
        &[1.0, 8.0],
    );
    assert_eq!(tiny::config(&writer).unwrap().rope.scaling, RopeScaling::Factors(vec![4.0, 32.0]));
    let none = writer.set("llama.rope.scaling.type", Value::String("none".into()));
    assert_eq!(tiny::config(&none).unwrap().rope.scaling, RopeScaling::Factors(vec![1.0, 8.0]));
}

fn config(changes: Json) -> Result<ModelConfig, ConfigError> {
    let mut json = llama_3_2_1b();
    json.as_object_mut().unwrap().remove("rope_parameters");
    for (key, value) in changes.as_object().unwrap() {
        json[key] = value.clone();
    }
    ModelConfig::from_json(&json.to_string())
}

/// As `transformers` 5 reads them.
#[test]
fn of_two_places_in_a_config_the_one_that_transformers_takes_counts() {
    let linear = |factor: f32| json!({"rope_type": "linear", "factor": factor});
    let (old, new) = (linear(2.0), with(linear(4.0), "rope_theta", json!(500.0)));
    for (changes, theta, factor) in [
        (json!({"rope_parameters": new, "rope_theta": 700.0}), 500.0, 4.0),
        (json!({"rope_scaling": old, "rope_theta": 700.0}), 700.0, 2.0),
        (json!({"rope_scaling": new, "rope_theta": 700.0}), 500.0, 4.0),
        // The old one takes the place of the new one, and of the base in it.
        (json!({"rope_scaling": old, "rope_parameters": new, "rope_theta": 700.0}), 700.0, 2.0),
        (json!({"rope_scaling": old, "rope_parameters": new}), 10_000.0, 2.0),
        (json!({"rope_scaling": null, "rope_parameters": new}), 500.0, 4.0),
        (json!({"rope_scaling": {}, "rope_parameters": new}), 500.0, 4.0),
    ] {
        let rope = config(changes.clone()).unwrap().rope;
        assert_eq!((rope.theta, rope.scaling), (theta, RopeScaling::Linear { factor }), "{changes}");
    }
}

#[test]
fn a_scaling_that_is_not_understood_in_full_is_refused() {
    let scaling = |scaling: Json| config(json!({"rope_scaling": scaling})).map(|config| config.rope.scaling);
    assert_eq!(
        scaling(json!({"type": "linear", "rope_type": "linear", "factor": 2.0})),
        Ok(RopeScaling::Linear { factor: 2.0 })
    );
    assert_eq!(scaling(json!({"rope_type": "default", "factor": 1.0})), Ok(RopeScaling::None));
    for (what, key) in [
        (json!({"factor": 2.0}), "rope_scaling.factor"),
        (json!({"rope_type": "default", "factor": 2.0}), "rope_scaling.factor"),
        (json!({"type": "linear", "rope_type": "llama3", "factor": 2.0}), "rope_scaling.type"),
        (json!({"type": "linear", "factor": 2.0, "low_freq_factor": 1.0}), "rope_scaling.low_freq_factor"),
        (json!({"type": "linear", "factor": 2.0, "attention_factor": 1.2}), "rope_scaling.attention_factor"),
        (json!({"full_attention": {"rope_type": "linear", "factor": 2.0}}), "rope_scaling.full_attention"),
        (json!({"type": "default", "mrope_section": [16, 24, 24]}), "rope_scaling.mrope_section"),
    ] {
        let error = scaling(what.clone()).unwrap_err();
        assert!(
            matches!(&error, ConfigError::Unknown { key: got, .. } | ConfigError::Unsupported { key: got, .. } if got == key),
            "{what}: {error}"
        );
    }
}

#[derive(Deserialize)]
struct Rotation {
    parameters: Json,
    frequencies: Vec<f32>,
    factor: f32,
}

/// Of `tools/goldens/families.py`: heads of 16 channels, 256 positions.
#[test]
fn frequencies_and_factors_equal_those_of_transformers() {
    let rotations = std::fs::read(fixture("rope.json")).unwrap();
    let rotations: Vec<Rotation> = serde_json::from_slice(&rotations).unwrap();
    assert!(rotations.len() > 10);
    for Rotation { parameters, frequencies, factor } in rotations {
        let parameters = with(parameters, "rope_theta", json!(10_000.0));
        let changes = json!({"head_dim": 16, "max_position_embeddings": 256, "rope_parameters": parameters});
        let rope = config(changes).unwrap().rope;
        assert!((rope.attention_factor() - factor).abs() <= 1e-6 * factor, "{parameters}");
        for (got, expected) in rope.frequencies(16).unwrap().iter().zip(&frequencies) {
            assert!((got - expected).abs() <= 2e-6 * expected, "{parameters}: {got}, {expected}");
        }
    }
}

#[test]
fn yarn_in_a_gguf_file_is_that_of_transformers() {
    let writer = tiny::llama()
        .set("llama.rope.scaling.type", Value::String("yarn".into()))
        .set("llama.rope.scaling.factor", Value::F32(4.0));
    let scaling = |writer| tiny::config(&writer).map(|config| config.rope.scaling);
    let expected = |original_context, beta_fast, beta_slow, times| RopeScaling::Yarn {
        factor: 4.0,
        original_context,
        beta_fast,
        beta_slow,
        attention_factor: times * (0.1 * 4.0_f32.ln() + 1.0),
        truncate: true,
    };
    // The context's 64 where the file does not say the original one.
    assert_eq!(scaling(writer.clone()), Ok(expected(64, 32.0, 1.0, 1.0)));
    let all = [
        ("original_context_length", Value::U32(16)),
        ("yarn_beta_fast", Value::F32(8.0)),
        ("yarn_beta_slow", Value::F32(2.0)),
        ("attn_factor", Value::F32(1.5)),
        ("yarn_ext_factor", Value::F32(1.0)),
        ("yarn_attn_factor", Value::F32(1.0)),
        ("yarn_log_multiplier", Value::F32(0.0)),
    ];
    let said = all
        .into_iter()
        .fold(writer.clone(), |writer, (key, value)| writer.set(&format!("llama.rope.scaling.{key}"), value));
    assert_eq!(scaling(said.clone()), Ok(expected(16, 8.0, 2.0, 1.5)));
    // It reaches four times as far as the original context, and no less far than the file says.
    assert_eq!([writer.clone(), said].map(|writer| tiny::config(&writer).unwrap().context_length), [256, 64]);
    for key in ["yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"] {
        let key = format!("llama.rope.scaling.{key}");
        let error = scaling(writer.clone().set(&key, Value::F32(0.5))).unwrap_err();
        assert!(matches!(&error, ConfigError::Unsupported { key: got, .. } if *got == key), "{error}");
    }
    let error = scaling(writer.f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0])).unwrap_err();
    assert!(matches!(&error, ConfigError::Unsupported { key, .. } if key == "rope_freqs.weight"), "{error}");
}

#[test]
fn dynamic_scaling_changes_nothing_up_to_the_context_which_is_the_end() {
    let dynamic = json!({"rope_type": "dynamic", "factor": 4.0});
    let scaled = config(json!({"rope_scaling": dynamic, "max_position_embeddings": 64})).unwrap();
    let plain = config(json!({"max_position_embeddings": 64})).unwrap();
    assert_eq!(scaled.rope.frequencies(64), plain.rope.frequencies(64));
    assert_eq!(scaled.context_length, 64);
    assert!(config(json!({"rope_scaling": {"rope_type": "dynamic"}})).is_err());
}

#[test]
fn yarn_reaches_as_far_as_it_is_made_for() {
    for (trained, reach) in [(32_768, 131_072), (131_072, 131_072), (200_000, 200_000)] {
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768});
        let config = config(json!({"rope_scaling": yarn, "max_position_embeddings": trained})).unwrap();
        assert_eq!(config.context_length, reach);
    }
}

#[test]
fn yarn_out_of_range_is_refused() {
    let yarn = |key: &str, value: Json| {
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
        config(json!({"rope_scaling": with(yarn, key, value)}))
    };
    for (key, value) in [
        ("factor", json!(0.0)),
        ("factor", json!(-1.0)),
        ("beta_fast", json!(-1.0)),
        ("beta_slow", json!(-1.0)),
        ("attention_factor", json!(0.0)),
    ] {
        assert!(matches!(yarn(key, value), Err(ConfigError::NotPositive { .. })), "{key}");
    }
    for got in [0, 1_u64 << 40] {
        let error = yarn("original_max_position_embeddings", json!(got));
        assert!(matches!(error, Err(ConfigError::Size { .. })), "{got}");
    }
    // A base of 1 has one frequency only, and no ramp.
    assert!(matches!(yarn("rope_theta", json!(1.0)), Err(ConfigError::NotPositive { .. })));
}
