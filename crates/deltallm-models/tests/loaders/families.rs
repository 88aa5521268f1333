//! What the families say in their own ways: windows, rotations, norms and biases, in both formats.

use deltallm_attn::Mask;
use deltallm_models::gguf::{Array, Value};
use deltallm_models::{Architecture, ConfigError, LayerSet, ModelConfig, ModelError, RopeScaling};
use serde_json::{Value as Json, json};

use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;

/// A model of four layers with what every `config.json` must say, and `more`.
fn json(family: &str, more: Json) -> Result<ModelConfig, ConfigError> {
    let mut json = json!({
        "model_type": family, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100,
    });
    for (key, value) in more.as_object().unwrap() {
        json[key] = value.clone();
    }
    ModelConfig::from_json(&json.to_string())
}

fn refused_by_name(family: &str, more: Json, name: &str) {
    let error = json(family, more.clone()).expect_err(name);
    match &error {
        ConfigError::Unknown { key, .. }
        | ConfigError::Unsupported { key, .. }
        | ConfigError::Missing { key } => assert_eq!(key, name, "{family}, {more}: {error}"),
        other => panic!("{family}, {more}: {other}"),
    }
}

/// The parameters of a GGUF file of a family, with an embedding.
fn gguf(family: &str) -> GgufWriter {
    let embedding = vec![0.25; tiny::VOCAB * 256];
    tiny::parameters(family, tiny::VOCAB as u32).f32_tensor(
        "token_embd.weight",
        &[tiny::VOCAB, 256],
        &embedding,
    )
}

fn windows(config: &ModelConfig) -> Vec<usize> {
    let window = |layer| match config.mask(layer) {
        Mask::SlidingWindow(tokens) => tokens,
        Mask::Causal => 0,
        other => panic!("{other}"),
    };
    (0..config.layers).map(window).collect()
}

/// Those of the family's class in `transformers`.
#[test]
fn what_a_config_leaves_out_is_as_in_the_class_of_the_family() {
    for (family, architecture, theta, context, head_dim, tied) in [
        ("llama", Architecture::Llama, 1e4, 2048, 8, false),
        ("mistral", Architecture::Mistral, 1e4, 131_072, 8, false),
        ("qwen2", Architecture::Qwen2, 1e4, 32_768, 8, false),
        ("qwen3", Architecture::Qwen3, 1e4, 32_768, 128, false),
        ("smollm3", Architecture::SmolLM3, 2e6, 32_768, 8, true),
        ("gemma3_text", Architecture::Gemma3, 1e6, 131_072, 256, true),
    ] {
        let config = json(family, json!({})).unwrap();
        assert_eq!((config.architecture, config.rope.theta), (architecture, theta), "{family}");
        assert_eq!((config.context_length, config.head_dim), (context, head_dim), "{family}");
        assert_eq!((config.tie_embeddings, config.norm_eps), (tied, 1e-6), "{family}");
    }
    let kv_heads = |family, heads: Json| {
        let more = json!({"num_attention_heads": 32, "head_dim": 8, "num_key_value_heads": heads});
        json(family, more).unwrap().kv_heads
    };
    assert_eq!(kv_heads("mistral", Json::Null), 32);
    let mut absent = json!({
        "model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 32,
        "intermediate_size": 96, "vocab_size": 100, "head_dim": 8,
    });
    assert_eq!(ModelConfig::from_json(&absent.to_string()).unwrap().kv_heads, 8);
    absent["model_type"] = json!("smollm3");
    assert_eq!(ModelConfig::from_json(&absent.to_string()).unwrap().kv_heads, 4);
}

#[test]
fn a_window_is_where_the_class_of_the_family_has_one() {
    let of = |family, more| windows(&json(family, more).unwrap());
    assert_eq!(of("mistral", json!({})), [4096; 4]);
    assert_eq!(of("mistral", json!({"sliding_window": null})), [0; 4]);
    assert_eq!(of("mistral", json!({"sliding_window": 16})), [16; 4]);
    // A window over the whole context leaves nothing out.
    assert_eq!(of("mistral", json!({"sliding_window": 16, "max_position_embeddings": 16})), [0; 4]);
    for family in ["qwen2", "qwen3"] {
        assert_eq!(of(family, json!({"sliding_window": 16, "max_window_layers": 0})), [0; 4]);
        let on = |more: Json| {
            let mut all = json!({"use_sliding_window": true});
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            of(family, all)
        };
        assert_eq!(on(json!({})), [0; 4]); // from layer 28 on
        assert_eq!(on(json!({"max_window_layers": 3})), [0, 0, 0, 4096]);
        assert_eq!(on(json!({"max_window_layers": 1, "sliding_window": 16})), [0, 16, 16, 16]);
        assert_eq!(on(json!({"max_window_layers": 1, "sliding_window": null})), [0; 4]);
        let types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"];
        assert_eq!(on(json!({"sliding_window": 16, "layer_types": types})), [16, 0, 0, 16]);
    }
    // Without a list, the layers that rotate nothing have it.
    assert_eq!(of("smollm3", json!({"sliding_window": 16})), [0; 4]);
    assert_eq!(of("smollm3", json!({"use_sliding_window": true, "sliding_window": 16})), [0, 0, 0, 16]);
    assert_eq!(of("gemma3_text", json!({"sliding_window": 16})), [16; 4]);
    assert_eq!(of("gemma3_text", json!({"sliding_window": 16, "sliding_window_pattern": 2})), [16, 0, 16, 0]);
    let types = ["full_attention", "full_attention", "sliding_attention", "full_attention"];
    assert_eq!(of("gemma3_text", json!({"sliding_window": 16, "layer_types": types})), [0, 0, 16, 0]);
}

#[test]
fn windows_that_are_not_understood_are_refused_by_name() {
    let types =
        |kinds: &[&str]| json!({"sliding_window": 16, "use_sliding_window": true, "layer_types": kinds});
    for family in ["qwen2", "qwen3", "smollm3", "gemma3_text"] {
        refused_by_name(family, types(&["full_attention"]), "layer_types");
        refused_by_name(family, types(&["full_attention", "chunked_attention"]), "layer_types");
    }
    let sliding = json!({"sliding_window": null, "layer_types": (["sliding_attention"; 4])});
    refused_by_name("qwen2", sliding.clone(), "layer_types");
    refused_by_name("gemma3_text", sliding, "layer_types");
    // Its class gives every layer the window, whatever the list says.
    refused_by_name("mistral", types(&["full_attention"; 4]), "layer_types");
    for family in ["mistral", "gemma3_text"] {
        refused_by_name(family, json!({"use_sliding_window": false}), "use_sliding_window");
    }
    assert!(json("mistral", json!({"use_sliding_window": false, "sliding_window": null})).is_ok());
    refused_by_name("gemma3_text", json!({"sliding_window": null}), "sliding_window");
    refused_by_name("gemma3_text", json!({"sliding_window_pattern": 0}), "sliding_window_pattern");
    refused_by_name(
        "gemma3_text",
        json!({"use_bidirectional_attention": true}),
        "use_bidirectional_attention",
    );
}

#[test]
fn layers_without_rotation_are_those_that_the_file_says() {
    let unrotated = |more| {
        let config = json("smollm3", more).unwrap();
        (0..4).map(|layer| config.unrotated_layers.contains(layer)).collect::<Vec<_>>()
    };
    assert_eq!(unrotated(json!({})), [false, false, false, true]);
    assert_eq!(unrotated(json!({"no_rope_layer_interval": 2})), [false, true, false, true]);
    assert_eq!(unrotated(json!({"no_rope_layers": [0, 1, 1, 0]})), [true, false, false, true]);
    for (wrong, name) in [
        (json!({"no_rope_layers": [0, 1]}), "no_rope_layers"),
        (json!({"no_rope_layers": [0, 1, 1, 2]}), "no_rope_layers"),
        (json!({"no_rope_layer_interval": 0}), "no_rope_layer_interval"),
    ] {
        refused_by_name("smollm3", wrong, name);
    }
    refused_by_name("qwen2", json!({"no_rope_layers": [0, 1, 1, 0]}), "no_rope_layers");
    assert_eq!(tiny::config(&gguf("smollm3")).unwrap().unrotated_layers, LayerSet::Every(4));
}

#[test]
fn gemma_has_a_rotation_for_each_kind_of_layer() {
    let rotations = |more| {
        let config = json("gemma3_text", more).unwrap();
        let local = config.local_rope.unwrap();
        (config.rope.theta, config.rope.scaling, local.theta, local.scaling)
    };
    let none = RopeScaling::None;
    assert_eq!(rotations(json!({})), (1e6, none.clone(), 1e4, none.clone()));
    let old = json!({"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    let new = json!({"rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }});
    for file in [old, new] {
        assert_eq!(rotations(file), (5e5, RopeScaling::Linear { factor: 8.0 }, 2e4, none.clone()));
    }
    let half = json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}});
    assert_eq!(rotations(half), (1e6, none.clone(), 1e4, none));
    // Its class looks for the kinds of layers, and passes over what stands beside them.
    let flat = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}});
    refused_by_name("gemma3_text", flat, "rope_parameters.rope_theta");
    let inner =
        json!({"rope_parameters": {"full_attention": {"rope_type": "default", "short_factor": [1.0]}}});
    refused_by_name("gemma3_text", inner, "rope_parameters.full_attention.short_factor");
}

#[test]
fn scale_of_scores_and_cap_of_logits_are_gemmas() {
    let config = |more| json("gemma3_text", more).unwrap();
    assert_eq!(config(json!({})).score_scale, None); // one over the root of 256
    assert_eq!(config(json!({"query_pre_attn_scalar": 64})).score_scale, Some(0.125));
    assert_eq!(config(json!({"final_logit_softcapping": 30.0})).logit_softcap, Some(30.0));
    assert_eq!(config(json!({"final_logit_softcapping": null})).logit_softcap, None);
    assert!(matches!(
        json("gemma3_text", json!({"query_pre_attn_scalar": -1})),
        Err(ConfigError::NotPositive { .. })
    ));
    refused_by_name("gemma3_text", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping");
    for name in ["query_pre_attn_scalar", "final_logit_softcapping"] {
        refused_by_name("qwen3", json!({name: 30.0}), name);
    }
    let writer = gguf("gemma3").set("gemma3.final_logit_softcapping", Value::F32(30.0));
    assert_eq!(tiny::config(&writer).unwrap().logit_softcap, Some(30.0));
}

#[test]
fn the_activation_is_the_familys_under_either_name() {
    for name in ["hidden_act", "hidden_activation"] {
        assert!(json("gemma3_text", json!({name: "gelu_pytorch_tanh"})).is_ok());
        let error = ConfigError::Activation { expected: "gelu_pytorch_tanh", got: "gelu".into() };
        assert_eq!(json("gemma3_text", json!({name: "gelu"})), Err(error));
        assert!(json("qwen2", json!({name: "gelu"})).is_err());
    }
}

#[test]
fn biases_are_those_of_the_class() {
    let biases = |family, more| {
        let config = json(family, more).unwrap();
        (config.attention_bias, config.attention_output_bias, config.mlp_bias)
    };
    assert_eq!(biases("qwen2", json!({})), (true, false, false));
    assert_eq!(biases("mistral", json!({"attention_bias": false})), (false, false, false));
    for family in ["qwen3", "gemma3_text", "smollm3", "llama"] {
        assert_eq!(biases(family, json!({})), (false, false, false), "{family}");
        assert_eq!(biases(family, json!({"attention_bias": true})), (true, true, false), "{family}");
    }
    assert_eq!(biases("smollm3", json!({"mlp_bias": true})), (false, false, true));
    refused_by_name("mistral", json!({"attention_bias": true}), "attention_bias");
    refused_by_name("qwen3", json!({"mlp_bias": true}), "mlp_bias");
}

#[test]
fn what_relatives_of_the_families_have_is_refused_by_name() {
    for (name, value) in [
        ("num_experts", json!(8)),
        ("num_local_experts", json!(8)),
        ("decoder_sparse_step", json!(1)),
        ("use_mrope", json!(true)),
        ("rope_scaling", json!({"type": "default", "mrope_section": [1, 1, 2]})),
        ("vision_config", json!({"depth": 2})),
        ("altup_num_inputs", json!(4)),
        ("llama_4_scaling", json!({"beta": 0.1})),
        ("attn_temperature_tuning", json!(true)),
    ] {
        let inner = if name == "rope_scaling" { "rope_scaling.mrope_section" } else { name };
        for family in ["qwen2", "qwen3", "mistral", "smollm3"] {
            refused_by_name(family, json!({name: value}), inner);
        }
    }
    for (name, value) in [
        ("expert_count", Value::U32(8)),
        ("rope.dimension_sections", Value::Array(Array::I32(vec![16, 24, 24, 0]))),
        ("attention.temperature_scale", Value::F32(0.1)),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("attention.key_length_swa", Value::U32(64)),
        ("attention.causal", Value::Bool(false)),
    ] {
        for family in ["qwen2", "qwen3", "gemma3", "smollm3"] {
            let error =
                tiny::config(&gguf(family).set(&format!("{family}.{name}"), value.clone())).unwrap_err();
            match &error {
                ConfigError::Unknown { key, .. } | ConfigError::Unsupported { key, .. } => {
                    assert_eq!(*key, format!("{family}.{name}"));
                }
                other => panic!("{name}: {other}"),
            }
        }
    }
    for family in ["qwen2", "qwen3", "smollm3"] {
        for (name, value) in [
            ("rope.freq_base_swa", Value::F32(1e4)),
            ("attention.sliding_window_pattern", Value::U32(6)),
            ("final_logit_softcapping", Value::F32(30.0)),
        ] {
            let writer = gguf(family).set(&format!("{family}.{name}"), value);
            assert!(tiny::config(&writer).is_err(), "{family}.{name}");
        }
    }
}

#[test]
fn a_gguf_file_of_gemma_has_every_sixth_layer_global_if_it_says_nothing_else() {
    let writer = || {
        gguf("gemma3")
            .set("gemma3.block_count", Value::U32(7))
            .set("gemma3.attention.sliding_window", Value::U32(16))
    };
    let pattern = |value| {
        let writer = writer().set("gemma3.attention.sliding_window_pattern", value);
        tiny::config(&writer).map(|config| windows(&config))
    };
    let plain = tiny::config(&writer()).unwrap();
    assert_eq!(windows(&plain), [16, 16, 16, 16, 16, 0, 16]);
    let local = plain.local_rope.unwrap();
    assert_eq!((local.theta, local.scaling), (1e4, RopeScaling::None));
    let config = tiny::config(&writer().set("gemma3.rope.freq_base_swa", Value::F32(2e4))).unwrap();
    assert_eq!(config.local_rope.unwrap().theta, 2e4);
    assert_eq!(pattern(Value::U32(3)).unwrap(), [16, 16, 0, 16, 16, 0, 16]);
    let listed = vec![true, false, true, true, true, true, false];
    assert_eq!(pattern(Value::Array(Array::Bool(listed))).unwrap(), [16, 0, 16, 16, 16, 16, 0]);
    for wrong in [Array::Bool(vec![true; 6]), Array::F32(vec![1.0; 7])] {
        assert!(matches!(pattern(Value::Array(wrong)), Err(ConfigError::Unsupported { .. })));
    }
    // Without a window all layers see all, and rotate alike.
    let none = tiny::config(&writer().remove("gemma3.attention.sliding_window")).unwrap();
    assert_eq!((windows(&none), none.local_layers), (vec![0; 7], LayerSet::Empty));
}

/// Of this size the published model has another scale, and its files do not say it.
#[test]
fn the_scale_of_the_largest_gemma_is_known_by_its_layers() {
    let scale = |layers| {
        tiny::config(&gguf("gemma3").set("gemma3.block_count", Value::U32(layers))).unwrap().score_scale
    };
    assert_eq!((scale(48), scale(62)), (None, Some(1.0 / 8.0)));
}

#[test]
fn only_the_first_channels_are_rotated_where_a_file_says_so() {
    let mut half = json("qwen2", json!({"rope_theta": 1e4})).unwrap().rope;
    half.rotated_channels = Some(4);
    assert_eq!(half.frequencies(8).unwrap(), [1.0, 0.01]);
    let writer = |channels| gguf("qwen2").set("qwen2.rope.dimension_count", Value::U32(channels));
    assert_eq!(tiny::config(&writer(32)).unwrap().rope.rotated_channels, Some(32));
    assert_eq!(tiny::config(&writer(64)).unwrap().rope.rotated_channels, None);
    assert!(matches!(tiny::config(&writer(31)), Err(ConfigError::RotatedChannels { got: 31, .. })));
    assert!(matches!(tiny::config(&writer(128)), Err(ConfigError::Unsupported { .. })));
}

#[test]
fn norms_that_the_family_does_not_have_are_refused() {
    let norm = |family: &str, name: &str| {
        let writer = gguf(family).f32_tensor(name, &[64], &[1.0; 64]);
        tiny::open(&writer).config()
    };
    for (family, name, is_known) in [
        ("qwen2", "blk.0.attn_q_norm.weight", false),
        ("qwen3", "blk.0.attn_q_norm.weight", true),
        ("gemma3", "blk.0.attn_k_norm.weight", true),
        ("qwen3", "blk.0.post_attention_norm.weight", false),
        ("gemma3", "blk.0.post_ffw_norm.weight", true),
        ("gemma3", "blk.0.attn_sub_norm.weight", false),
        ("smollm3", "blk.0.attn_k_norm.weight", false),
    ] {
        match norm(family, name) {
            Ok(_) => assert!(is_known, "{family}: {name}"),
            Err(ModelError::UnknownTensor { tensor, .. }) => assert!(!is_known && tensor == name),
            Err(other) => panic!("{other}"),
        }
    }
}
