//! RoPE scaling that is said in two ways, or half.

use deltallm_models::gguf::Value;
use deltallm_models::{ConfigError, ModelConfig, RopeScaling};
use serde_json::{Value as Json, json};

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
