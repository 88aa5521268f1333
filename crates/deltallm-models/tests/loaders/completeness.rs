//! Everything in a file is used, known to change nothing, or refused by name.

use std::fs;

use deltallm_attn::Mask;
use deltallm_models::gguf::{Array, Value};
use deltallm_models::{ConfigError, Model, ModelConfig, ModelError, ModelFile};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use crate::common::files::{directory, fixture};
use crate::common::parameters::{llama_3_2_1b, with};
use crate::common::tiny;

#[test]
fn tensors_of_a_gguf_file_that_the_graph_does_not_have_are_refused_by_name() {
    for name in [
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_k_norm.weight",
        "blk.0.attn_sub_norm.weight",
        "blk.0.post_attention_norm.weight",
        "blk.0.attn_norm.bias",
        "output_norm.bias",
        "output.bias",
        "token_embd.bias",
        "token_embd_norm.weight",
        "blk.1.attn_norm.weight",
        "blk.1.attn_q.bias",
        "blk.0.attn_q.scale",
        "blk.0.attn_q.input_scale",
        "blk.0.attn_q.lora_a",
        "blk.0.attn_qkv.weight",
        "blk.0.attn_sinks.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.00.attn_q.bias",
        "position_embd.weight",
        "cls.weight",
    ] {
        let error = tiny::open(&tiny::llama().f32_tensor(name, &[8], &[2.0; 8])).config().unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownTensor { tensor, .. } if tensor == name),
            "{name}: {error}"
        );
        assert!(error.to_string().starts_with(&format!("tiny: tensor `{name}`: not supported")), "{error}");
    }
}

#[test]
fn a_ternary_projection_has_a_scale_and_its_embedding_none() {
    let scale = |name: &str| tiny::open(&tiny::bitnet().f32_tensor(name, &[1], &[2.0])).config();
    assert!(scale("blk.0.ffn_down.scale").is_ok());
    for name in ["token_embd.scale", "blk.0.attn_norm.scale", "blk.0.ffn_down.input_scale"] {
        assert!(matches!(scale(name), Err(ModelError::UnknownTensor { .. })), "{name}");
    }
}

#[test]
fn tensors_of_a_directory_that_the_graph_does_not_have_are_refused_by_name() {
    let open = |place: &str, tensor: &str| {
        let (source, target) = (fixture("llama/gqa1-d32"), directory(place));
        fs::copy(source.join("config.json"), target.join("config.json")).unwrap();
        let bytes = fs::read(source.join("model.safetensors")).unwrap();
        let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let ones = 1.0_f32.to_le_bytes().repeat(16);
        let extra = (tensor.to_owned(), TensorView::new(Dtype::F32, vec![16], &ones).unwrap());
        let tensors = whole.tensors().into_iter().chain([extra]);
        fs::write(target.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
        ModelFile::open(&target).unwrap().config()
    };
    for name in [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.inner_attn_ln.weight",
        "model.layers.0.self_attn.q_proj.weight_scale",
        "model.layers.0.self_attn.q_proj.input_scale",
        "model.layers.0.self_attn.q_proj.g_idx",
        "model.layers.0.input_layernorm.bias",
        "model.layers.2.input_layernorm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "score.weight",
        "transformer.wte.weight",
    ] {
        let error = open("unknown-tensor", name).unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownTensor { tensor, .. } if tensor == name),
            "{name}: {error}"
        );
    }
    // Files of the first Llama models have them; they follow from the parameters.
    for name in ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"] {
        assert!(open("frequencies", name).is_ok(), "{name}");
    }
}

#[test]
fn keys_of_a_gguf_file_that_are_not_understood_are_refused_by_name() {
    for (key, value) in [
        ("attention.causal", Value::Bool(false)),
        ("attention.sliding_window_pattern", Value::U32(2)),
        ("attention.scale", Value::F32(1.0)),
        ("attention.scale", Value::F32(f32::NAN)),
        ("attention.max_alibi_bias", Value::F32(8.0)),
        ("attention.clamp_kqv", Value::F32(8.0)),
        ("attn_logit_softcapping", Value::F32(50.0)),
        ("final_logit_softcapping", Value::F32(30.0)),
        ("logit_scale", Value::F32(0.5)),
        ("residual_scale", Value::F32(0.22)),
        ("embedding_scale", Value::F32(12.0)),
        ("expert_count", Value::U32(8)),
        ("expert_used_count", Value::U32(2)),
        ("rope.scaling.attn_factor", Value::F32(1.2)),
        ("rope.scaling.yarn_ext_factor", Value::F32(1.0)),
        ("rope.dimension_sections", Value::Array(Array::I32(vec![1, 1]))),
        ("use_parallel_residual", Value::Bool(true)),
        ("pooling_type", Value::U32(1)),
        ("something.new", Value::String("yes".into())),
    ] {
        let key = format!("llama.{key}");
        let error = tiny::config(&tiny::llama().set(&key, value)).unwrap_err();
        match &error {
            ConfigError::Unknown { key: got, .. } | ConfigError::Unsupported { key: got, .. } => {
                assert_eq!(*got, key);
            }
            other => panic!("{key}: {other}"),
        }
        assert!(error.to_string().contains(&key), "{error}");
    }
}

#[test]
fn keys_of_a_gguf_file_that_change_nothing_are_passed_over() {
    let plain = tiny::config(&tiny::llama()).unwrap();
    for (key, value) in [
        ("llama.attention.causal", Value::Bool(true)),
        ("llama.attention.sliding_window", Value::U32(0)),
        ("llama.attention.sliding_window", Value::U32(64)),
        ("llama.attention.scale", Value::F32(0.5)),
        ("llama.attention.scale", Value::F32(0.0)),
        ("llama.attn_logit_softcapping", Value::F32(0.0)),
        ("llama.logit_scale", Value::F32(1.0)),
        ("llama.expert_count", Value::U32(0)),
        ("llama.expert_used_count", Value::U32(0)),
        ("llama.tensor_data_layout", Value::String("Meta AI original pth".into())),
        ("llama.rope.scaling.original_context_length", Value::U32(32)),
        ("llama.rope.scaling.finetuned", Value::Bool(true)),
        ("llama.rope.scaling.attn_factor", Value::F32(1.0)),
        ("llama.attention.layer_norm_epsilon", Value::F32(1e-6)),
        ("general.type", Value::String("model".into())),
        ("general.name", Value::String("somebody's".into())),
        ("quantize.imatrix.file", Value::String("imatrix.dat".into())),
        ("mistral.attention.causal", Value::Bool(false)), // another architecture's
    ] {
        assert_eq!(tiny::config(&tiny::llama().set(key, value)).as_ref(), Ok(&plain), "{key}");
    }
}

#[test]
fn a_file_that_is_no_whole_model_is_refused() {
    for kind in ["adapter", "mmproj", "imatrix"] {
        let error = tiny::config(&tiny::llama().set("general.type", Value::String(kind.into()))).unwrap_err();
        assert!(matches!(&error, ConfigError::Unsupported { key, .. } if key == "general.type"), "{error}");
    }
}

#[test]
fn a_window_of_attention_is_a_mask_and_limits_the_context_where_the_class_has_none() {
    let writer = tiny::llama().set("llama.attention.sliding_window", Value::U32(16));
    let config = tiny::config(&writer).unwrap();
    assert_eq!((config.context_length, config.mask(0)), (64, Mask::SlidingWindow(16)));
    let json = |window: Json, on: Json| {
        let json = with(with(llama_3_2_1b(), "sliding_window", window), "use_sliding_window", on);
        ModelConfig::from_json(&json.to_string()).unwrap().context_length
    };
    assert_eq!(json(json!(4096), Json::Null), 4096);
    assert_eq!(json(json!(4096), json!(true)), 4096);
    assert_eq!(json(json!(4096), json!(false)), 131_072);
    assert_eq!(json(Json::Null, Json::Null), 131_072);
    let layers = with(
        with(llama_3_2_1b(), "sliding_window", json!(4096)),
        "layer_types",
        json!(["sliding_attention"]),
    );
    assert_eq!(ModelConfig::from_json(&layers.to_string()).unwrap().context_length, 4096);
}

#[test]
fn sizes_may_be_given_for_each_layer_if_they_are_equal() {
    let keys = ["attention.head_count", "attention.head_count_kv", "feed_forward_length"];
    let plain = tiny::config(&tiny::two_layers()).unwrap();
    for (key, size) in keys.into_iter().zip([tiny::HEADS, tiny::KV_HEADS, tiny::FFN]) {
        let config = |sizes: Array| {
            tiny::config(&tiny::two_layers().set(&format!("llama.{key}"), Value::Array(sizes)))
        };
        let number = size as i32;
        assert_eq!(config(Array::I32(vec![number; 2])).as_ref(), Ok(&plain), "{key}");
        assert_eq!(config(Array::U32(vec![size as u32; 2])).as_ref(), Ok(&plain), "{key}");
        for sizes in [vec![number, number + 1], vec![number], vec![number; 3], vec![], vec![-1, -1]] {
            let error = config(Array::I32(sizes.clone())).unwrap_err();
            assert!(
                matches!(&error, ConfigError::Unsupported { key: got, .. } if got.ends_with(key)),
                "{sizes:?}: {error}"
            );
        }
        assert!(config(Array::F32(vec![1.0; 2])).is_err());
    }
}

#[test]
fn a_vocabulary_smaller_than_the_embedding_is_the_embeddings() {
    for (size, expected) in
        [(4, Ok(tiny::VOCAB)), (6, Err(ConfigError::Vocabulary { rows: tiny::VOCAB, got: 6 }))]
    {
        let writer = tiny::llama().set("llama.vocab_size", Value::U32(size));
        assert_eq!(tiny::config(&writer).map(|config| config.vocab_size), expected);
    }
}

fn refused(key: &str, value: Json) -> ConfigError {
    ModelConfig::from_json(&with(llama_3_2_1b(), key, value).to_string()).expect_err(key)
}

#[test]
fn fields_of_a_config_that_are_not_understood_are_refused_by_name() {
    for (name, value) in [
        ("is_causal", json!(false)),
        ("use_bidirectional_attention", json!(true)),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("query_pre_attn_scalar", json!(256)),
        ("attention_multiplier", json!(0.0078125)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("num_local_experts", json!(8)),
        ("use_qk_norm", json!(true)),
        ("rope_interleaved", json!(true)),
        ("no_rope_layers", json!([0])),
        ("norm_type", json!("layernorm")),
        ("layer_types", json!(["linear_attention"])),
        ("layer_types", json!(["sliding_attention"])),
        ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        ("quantization", json!({"bits": 4})),
        ("vision_config", json!({"hidden_size": 1024})),
        ("architectures", json!(["BitnetForCausalLM"])),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("something_new", json!(1.5)),
    ] {
        let error = refused(name, value);
        assert!(
            matches!(&error, ConfigError::Unknown { key, .. } | ConfigError::Unsupported { key, .. } if key == name),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
}

#[test]
fn fields_of_a_config_that_change_nothing_are_passed_over() {
    let plain = ModelConfig::from_json(&llama_3_2_1b().to_string()).unwrap();
    for (name, value) in [
        ("_name_or_path", json!("somebody/model")),
        ("_attn_implementation_autoset", json!(true)),
        ("transformers_version", json!("5.0.0")),
        ("transformers.js_config", json!({"kv_cache_dtype": {"q4f16": "float16"}})),
        ("unsloth_fixed", json!(true)),
        ("torch_dtype", json!("bfloat16")),
        ("dtype", json!("bfloat16")),
        ("use_cache", json!(true)),
        ("pretraining_tp", json!(2)),
        ("initializer_range", json!(0.02)),
        ("attention_dropout", json!(0.1)),
        ("resid_pdrop", json!(0.1)),
        ("bos_token_id", json!(1)),
        ("eos_token_id", json!([1, 2])),
        ("pad_token_id", json!(-1)),
        ("id2label", json!({"0": "LABEL_0"})),
        ("is_causal", json!(true)),
        ("rope_interleaved", json!(false)),
        ("embedding_multiplier", json!(1.0)),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("architectures", json!(["LLaMAForCausalLM"])),
        ("architectures", Json::Null),
        // What nobody knows, and says that it is not there.
        ("something_new", Json::Null),
        ("something_new", json!(false)),
        ("something_new", json!(0)),
        ("something_new", json!({})),
    ] {
        let json = with(llama_3_2_1b(), name, value);
        assert_eq!(ModelConfig::from_json(&json.to_string()).as_ref(), Ok(&plain), "{name}");
    }
}

/// As they lie on model hubs.
#[test]
fn configurations_of_published_models_are_read() {
    let base = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.02, "use_cache": true, "torch_dtype": "float16", "rms_norm_eps": 1e-5,
        "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
        "vocab_size": 32000, "tie_word_embeddings": false, "transformers_version": "4.31.0"
    });
    let llama3 = json!({"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"});
    for (name, more) in [
        (
            "Llama 1",
            json!({"architectures": ["LLaMAForCausalLM"], "max_sequence_length": 2048, "pad_token_id": -1}),
        ),
        (
            "Llama 2",
            json!({"_name_or_path": "meta-llama/Llama-2-7b-hf", "max_position_embeddings": 4096, "pretraining_tp": 1,
            "num_key_value_heads": 32, "rope_scaling": null}),
        ),
        (
            "Llama 3.1",
            json!({"attention_bias": false, "attention_dropout": 0.0, "eos_token_id": [128001, 128008, 128009],
            "max_position_embeddings": 131072, "mlp_bias": false, "num_key_value_heads": 8, "rope_scaling": llama3,
            "rope_theta": 500000.0}),
        ),
        (
            "TinyLlama",
            json!({"attention_bias": false, "max_position_embeddings": 2048, "num_key_value_heads": 4,
            "pretraining_tp": 1, "rope_scaling": null, "rope_theta": 10000.0}),
        ),
        (
            "SmolLM2",
            json!({"is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false, "pad_token_id": 2,
            "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000, "tie_word_embeddings": true,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}}}),
        ),
        (
            "BitNet 2B4T",
            json!({"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
            "auto_map": {"AutoConfig": "configuration_bitnet.BitNetConfig"}, "rope_theta": 500000.0,
            "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}}),
        ),
        (
            "BitNet with bitlinear",
            json!({"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
            "quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"], "rms_norm_eps": 1e-6,
                "use_rms_norm": false}}),
        ),
    ] {
        let mut json = base.clone();
        for (key, value) in more.as_object().unwrap() {
            json[key] = value.clone();
        }
        ModelConfig::from_json(&json.to_string()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// A copy of the fixture, tied or not, whose `lm_head.weight` is changed.
fn with_head(name: &str, tied: bool, head: impl Fn(&mut [u8])) -> Result<Model, ModelError> {
    let (source, target) = (fixture("llama/gqa1-d32"), directory(name));
    let mut config: Json = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = json!(tied);
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = whole.tensor("model.embed_tokens.weight").unwrap();
    let mut changed = embedding.data().to_vec();
    head(&mut changed);
    let view = TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &changed).unwrap();
    let tensors = whole.tensors().into_iter().chain([("lm_head.weight".to_owned(), view)]);
    fs::write(target.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    Model::load(&ModelFile::open(&target).unwrap())
}

#[test]
fn a_head_that_differs_from_the_embedding_that_it_is_said_to_be_is_refused() {
    assert!(with_head("equal-head", true, |_| {}).unwrap().weights().head.is_none());
    let error = with_head("other-head", true, |bytes| bytes[5] ^= 1).unwrap_err();
    assert!(matches!(&error, ModelError::UntiedHead { tensor, .. } if tensor == "lm_head.weight"), "{error}");
    assert!(error.to_string().contains("`tie_word_embeddings` is true"), "{error}");
    // Said to be another, it is used, whatever it is.
    assert!(with_head("own-head", false, |bytes| bytes[5] ^= 1).unwrap().weights().head.is_some());
}

#[test]
fn a_head_that_is_said_to_be_there_and_is_not_is_named() {
    let (source, target) = (fixture("llama/gqa1-d32"), directory("no-head"));
    fs::copy(source.join("model.safetensors"), target.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(source.join("config.json")).unwrap();
    let config = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    fs::write(target.join("config.json"), config).unwrap();
    let error = Model::load(&ModelFile::open(&target).unwrap()).unwrap_err();
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == "lm_head.weight"),
        "{error}"
    );
}
