//! Ternary weights: every way to break them that we could think of, by name.

use std::fs;

use deltallm_models::gguf::{GgufError, GgufFile, Value};
use deltallm_models::quant::TensorType;
use deltallm_models::{
    ConfigError, LayerTensor, Matrix, ModelConfig, ModelError, ModelFile, ModelWeights, TensorId,
    TernaryError, TernaryLinear,
};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use crate::common::bitnet::{pack, to_bytes};
use crate::common::files::{directory, fixture};
use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;
use crate::measured;

const QUERY: TensorId = TensorId::Layer(0, LayerTensor::Query);
const NAME: &str = "blk.0.attn_q.weight";
/// Of the query projection of [`tiny::bitnet`].
const SHAPE: [usize; 2] = [256, 256];

fn ternary(writer: &GgufWriter) -> Result<TernaryLinear, ModelError> {
    let bytes = writer.finish();
    measured(bytes.len(), || {
        let file = ModelFile::from_gguf_bytes("tiny", bytes)?;
        file.ternary(&file.config()?, QUERY)
    })
}

/// The tiny model with another query projection.
fn with_query(ty: TensorType, bytes: &[u8]) -> GgufWriter {
    tiny::bitnet().tensor(NAME, &SHAPE, ty, bytes)
}

fn codes() -> Vec<i8> {
    (0..SHAPE[0] * SHAPE[1]).map(|place| (place * 7 % 11 % 3) as i8 - 1).collect()
}

fn row(linear: &TernaryLinear, index: usize) -> Vec<i8> {
    let mut row = vec![0; linear.columns()];
    linear.row(index, &mut row).unwrap();
    row
}

#[test]
fn the_tiny_model_loads() {
    let file = tiny::open(&tiny::bitnet());
    let weights = ModelWeights::load(&file, &file.config().unwrap()).unwrap();
    let layer = &weights.layers[0];
    assert_eq!(layer.attention_sub_norm.as_ref().unwrap().len(), 256);
    assert_eq!(layer.mlp_sub_norm.as_ref().unwrap().len(), 512);
    for linear in [&layer.query, &layer.key, &layer.value, &layer.attention_output, &layer.gate, &layer.down]
    {
        assert!(matches!(linear.weight, Matrix::Ternary(_)));
    }
}

#[test]
fn rows_come_in_their_own_order_in_every_type() {
    for ty in [TensorType::I2_S, TensorType::TQ1_0, TensorType::TQ2_0] {
        let linear = ternary(&with_query(ty, &pack(ty, &codes(), 0.5))).unwrap();
        assert_eq!(linear.scale(), 0.5);
        for (index, expected) in codes().chunks(SHAPE[1]).enumerate() {
            assert_eq!(row(&linear, index), expected, "{ty}, row {index}");
        }
        // And as numbers, which is what a reader of matrices gets.
        let file = tiny::open(&with_query(ty, &pack(ty, &codes(), 0.5)));
        let matrix = file.matrix(&file.config().unwrap(), QUERY).unwrap();
        assert!(matrix.iter().zip(codes()).all(|(got, code)| *got == 0.5 * f32::from(code)));
    }
}

#[test]
fn all_names_of_the_architecture() {
    for name in ["bitnet", "bitnet-b1.58", "bitnet-25"] {
        let config = tiny::open(&tiny::bitnet_named(name)).config().unwrap();
        assert_eq!(config, tiny::open(&tiny::bitnet()).config().unwrap());
    }
}

#[test]
fn i2_s_in_a_file_of_another_architecture() {
    let bytes = pack(TensorType::I2_S, &[0; 128], 1.0);
    for writer in [
        tiny::llama().tensor("extra", &[128], TensorType::I2_S, &bytes),
        GgufWriter::new().tensor("extra", &[128], TensorType::I2_S, &bytes),
    ] {
        let error = GgufFile::parse(&writer.finish()).unwrap_err();
        assert!(matches!(error, GgufError::TensorType { got: 36, .. }), "{error}");
    }
}

#[test]
fn i2_s_where_rows_are_no_multiple_of_128() {
    let writer = tiny::bitnet().raw_tensor(b"extra", &[64, 2], 36, 0);
    let error = GgufFile::parse(&writer.finish()).unwrap_err();
    assert!(matches!(error, GgufError::PartialBlock { block: 128, got: 64, .. }), "{error}");
}

#[test]
fn tq_where_rows_are_no_multiple_of_256() {
    for id in [34, 35] {
        let writer = tiny::bitnet().raw_tensor(b"extra", &[128, 2], id, 0);
        let error = GgufFile::parse(&writer.finish()).unwrap_err();
        assert!(matches!(error, GgufError::PartialBlock { block: 256, got: 128, .. }), "{error}");
    }
}

#[test]
fn i2_s_without_its_tail() {
    // The last tensor of the file.
    let bytes = pack(TensorType::I2_S, &codes(), 1.0);
    let writer = with_query(TensorType::I2_S, &bytes[..bytes.len() - 32]);
    let error = GgufFile::parse(&writer.finish()).unwrap_err();
    assert!(matches!(error, GgufError::TensorPastEnd { bytes: 16416, .. }), "{error}");
    // Another after it.
    let writer = writer.f32_tensor("extra", &[64], &[0.0; 64]);
    let error = GgufFile::parse(&writer.finish()).unwrap_err();
    assert!(matches!(error, GgufError::Overlap { .. }), "{error}");
}

#[test]
fn i2_s_that_overflows() {
    let writer = tiny::bitnet().raw_tensor(b"extra", &[1 << 40, 1 << 24], 36, 0);
    assert!(matches!(GgufFile::parse(&writer.finish()), Err(GgufError::ShapeOverflow { .. })));
    let writer = tiny::bitnet().raw_tensor(b"extra", &[1 << 40], 36, 0);
    assert!(matches!(GgufFile::parse(&writer.finish()), Err(GgufError::TensorPastEnd { .. })));
}

#[test]
fn i2_s_scales_that_are_none() {
    for bad in [0.0, -0.5, f32::NAN, f32::INFINITY] {
        let error =
            ternary(&with_query(TensorType::I2_S, &pack(TensorType::I2_S, &codes(), bad))).unwrap_err();
        assert!(matches!(&error, ModelError::TernaryScale { tensor, .. } if tensor == NAME), "{error}");
    }
}

#[test]
fn code_3() {
    for (ty, byte) in [(TensorType::I2_S, 64 * 5 + 9), (TensorType::TQ2_0, 66 * 5 + 9)] {
        let mut bytes = pack(ty, &codes(), 1.0);
        bytes[byte] = 0b01_01_01_11;
        let error = ternary(&with_query(ty, &bytes)).unwrap_err();
        let ModelError::Ternary { source: TernaryError::Weight { row: 5, got: 2, column }, .. } = error
        else {
            panic!("{ty}: {error}");
        };
        // The lowest bits are the last quarter of a block of I2_S, and the first of TQ2_0.
        assert_eq!(column, if ty == TensorType::I2_S { 96 + 9 } else { 9 });
    }
}

#[test]
fn any_byte_of_tq1_0_is_some_trits() {
    let mut bytes = pack(TensorType::TQ1_0, &codes(), 1.0);
    for (i, byte) in bytes.iter_mut().enumerate().filter(|(i, _)| i % 54 < 52) {
        *byte = (i * 37) as u8;
    }
    let linear = ternary(&with_query(TensorType::TQ1_0, &bytes)).unwrap();
    assert!((0..256).all(|index| row(&linear, index).iter().all(|code| (-1..=1).contains(code))));
}

#[test]
fn tq_blocks_with_different_scales() {
    for ty in [TensorType::TQ1_0, TensorType::TQ2_0] {
        let size = ty.block_bytes();
        let mut bytes = pack(ty, &codes(), 0.5);
        bytes[12 * size - 2..12 * size].copy_from_slice(&half::f16::from_f32(0.25).to_le_bytes());
        let error = ternary(&with_query(ty, &bytes)).unwrap_err();
        let ModelError::BlockScale { block: 11, expected, got, .. } = error else { panic!("{error}") };
        assert_eq!((expected, got), (0.5, 0.25));
    }
}

#[test]
fn tq_scales_that_are_none() {
    for ty in [TensorType::TQ1_0, TensorType::TQ2_0] {
        for bad in [0.0, -0.5, f32::NAN, f32::INFINITY] {
            let error = ternary(&with_query(ty, &pack(ty, &codes(), bad))).unwrap_err();
            assert!(matches!(error, ModelError::TernaryScale { .. }), "{error}");
            // Only in the last block.
            let (mut bytes, size) = (pack(ty, &codes(), 0.5), ty.block_bytes());
            let last = bytes.len() - size;
            bytes[last + size - 2..].copy_from_slice(&half::f16::from_f32(bad).to_le_bytes());
            let result = ternary(&with_query(ty, &bytes));
            if bad != 0.0 {
                assert!(matches!(result, Err(ModelError::BlockScale { block: 255, .. })), "{bad}");
            } else {
                // That is how a block without weights is written.
                assert_eq!(row(&result.unwrap(), 255), [0; 256]);
            }
        }
    }
}

#[test]
fn numbers_of_one_magnitude_keep_it() {
    // The mean, two thirds of it, would be the scale of weights of training.
    let numbers = Vec::from_iter(codes().iter().map(|&code| f32::from(code) * 0.3));
    let linear = ternary(&with_query(TensorType::F32, &to_bytes(TensorType::F32, &numbers))).unwrap();
    assert_eq!(linear.scale(), 0.3);
    assert_eq!(row(&linear, 3), codes()[3 * 256..4 * 256]);
}

#[test]
fn weights_of_training_become_ternary() {
    let numbers = Vec::from_iter((0..256 * 256).map(|place| [0.9, -0.4, 0.1, -0.2][place % 4]));
    let linear = ternary(&with_query(TensorType::F32, &to_bytes(TensorType::F32, &numbers))).unwrap();
    assert!((linear.scale() - 0.4).abs() < 1e-6);
    assert_eq!(row(&linear, 9)[..4], [1, -1, 0, 0]);
}

#[test]
fn a_matrix_of_zeros_is_one() {
    let bytes = vec![0; 4 * 256 * 256];
    let linear = ternary(&with_query(TensorType::F32, &bytes)).unwrap();
    assert_eq!((row(&linear, 0), linear.scale()), (vec![0; 256], 1e-5));
}

#[test]
fn a_weight_of_training_that_is_no_number() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut numbers = vec![0.5; 256 * 256];
        (numbers[3], numbers[700]) = (0.25, bad);
        let bytes = to_bytes(TensorType::BF16, &numbers);
        let error = ternary(&with_query(TensorType::BF16, &bytes)).unwrap_err();
        assert!(matches!(error, ModelError::NonFiniteWeight { row: 2, column: 188, .. }), "{error}");
    }
}

#[test]
fn a_separate_scale_multiplies_whatever_the_type() {
    let numbers = Vec::from_iter(codes().iter().map(|&code| f32::from(code)));
    for (ty, bytes) in [
        (TensorType::F16, to_bytes(TensorType::F16, &numbers)),
        (TensorType::TQ1_0, pack(TensorType::TQ1_0, &codes(), 1.0)),
        (TensorType::I2_S, pack(TensorType::I2_S, &codes(), 1.0)),
    ] {
        let writer = with_query(ty, &bytes).f32_tensor("blk.0.attn_q.scale", &[1], &[0.1]);
        assert_eq!(ternary(&writer).unwrap().scale(), 0.1, "{ty}");
    }
}

#[test]
fn a_separate_scale_that_is_none() {
    let bytes = pack(TensorType::TQ2_0, &codes(), 1.0);
    for bad in [0.0, -1.0, f32::NAN] {
        let writer = with_query(TensorType::TQ2_0, &bytes).f32_tensor("blk.0.attn_q.scale", &[1], &[bad]);
        let error = ternary(&writer).unwrap_err();
        assert!(matches!(&error, ModelError::TernaryScale { tensor, .. } if tensor == "blk.0.attn_q.scale"));
    }
    let writer = with_query(TensorType::TQ2_0, &bytes).f32_tensor("blk.0.attn_q.scale", &[2], &[1.0; 2]);
    assert!(matches!(ternary(&writer), Err(ModelError::TensorShape { .. })));
    let writer =
        with_query(TensorType::TQ2_0, &bytes).tensor("blk.0.attn_q.scale", &[32], TensorType::Q8_0, &[0; 34]);
    assert!(ternary(&writer).is_err());
}

#[test]
fn a_separate_scale_beside_weights_of_training() {
    let numbers = Vec::from_iter((0..256 * 256).map(|place| [0.9, -0.4, 0.1, -0.2][place % 4]));
    let writer = with_query(TensorType::F32, &to_bytes(TensorType::F32, &numbers));
    let error = ternary(&writer.f32_tensor("blk.0.attn_q.scale", &[1], &[0.1])).unwrap_err();
    assert!(matches!(error, ModelError::NotTernary { .. }), "{error}");
}

#[test]
fn types_that_hold_no_ternary_weights() {
    let writer = with_query(TensorType::Q8_0, &vec![0; 256 * 256 / 32 * 34]);
    let error = ternary(&writer).unwrap_err();
    assert!(matches!(&error, ModelError::ElementType { got, .. } if got == "Q8_0"), "{error}");
}

#[test]
fn i2_s_where_numbers_are_needed() {
    let bytes = pack(TensorType::I2_S, &vec![1; 5 * 256], 1.0);
    let file = tiny::open(&tiny::bitnet().tensor("token_embd.weight", &[5, 256], TensorType::I2_S, &bytes));
    let error = file.weight(&file.config().unwrap(), TensorId::TokenEmbedding).unwrap_err();
    assert!(matches!(&error, ModelError::ElementType { got, .. } if got == "I2_S"), "{error}");
}

#[test]
fn missing_and_short_sub_norms() {
    let file = tiny::open(&tiny::bitnet().without_tensor("blk.0.ffn_sub_norm.weight"));
    let error = ModelWeights::load(&file, &file.config().unwrap()).unwrap_err();
    assert!(
        matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == "blk.0.ffn_sub_norm.weight")
    );
    let file = tiny::open(&tiny::bitnet().f32_tensor("blk.0.attn_sub_norm.weight", &[64], &[1.0; 64]));
    let error = ModelWeights::load(&file, &file.config().unwrap()).unwrap_err();
    assert!(matches!(error, ModelError::TensorShape { .. }), "{error}");
}

/// The parameters of the published 2B4T model.
fn bitnet_2b4t() -> Json {
    json!({
        "model_type": "bitnet", "hidden_act": "relu2", "hidden_size": 2560, "num_hidden_layers": 30,
        "num_attention_heads": 20, "num_key_value_heads": 5, "intermediate_size": 6912,
        "vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
        "rope_theta": 500000.0, "tie_word_embeddings": true,
        "quantization_config":
            {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    })
}

fn refused(key: &str, value: Json) -> ConfigError {
    let mut json = bitnet_2b4t();
    json[key] = value;
    ModelConfig::from_json(&json.to_string()).expect_err("parameters that must be refused")
}

#[test]
fn json_of_2b4t() {
    let config = ModelConfig::from_json(&bitnet_2b4t().to_string()).unwrap();
    assert_eq!((config.hidden_size, config.layers, config.heads, config.kv_heads), (2560, 30, 20, 5));
    assert_eq!((config.head_dim, config.intermediate_size, config.context_length), (128, 6912, 4096));
    assert_eq!((config.rope.theta, config.norm_eps), (500_000.0, 1e-5));
    let mut json = bitnet_2b4t();
    for key in ["rope_theta", "rms_norm_eps", "hidden_act"] {
        json[key] = Json::Null;
    }
    assert_eq!(ModelConfig::from_json(&json.to_string()).unwrap(), config);
}

#[test]
fn another_activation_than_squared_relu() {
    let error = ConfigError::Activation { expected: "relu2", got: "silu".into() };
    assert_eq!(refused("hidden_act", json!("silu")), error);
}

#[test]
fn quantisation_that_is_missing_or_of_another_kind() {
    let missing = ConfigError::Missing { key: "quantization_config".into() };
    assert_eq!(refused("quantization_config", Json::Null), missing);
    assert!(matches!(refused("quantization_config", json!([])), ConfigError::WrongType { .. }));
    for (key, value) in [
        ("quant_method", json!("gptq")),
        ("linear_class", json!("linear")),
        ("quantization_mode", json!("later")),
        ("use_rms_norm", json!(true)),
        ("modules_to_not_convert", json!(["lm_head", "model.layers.0.mlp.up_proj"])),
        ("modules_to_not_convert", json!([])),
    ] {
        let mut config = bitnet_2b4t()["quantization_config"].clone();
        config[key] = value;
        let error = refused("quantization_config", config);
        let expected = format!("quantization_config.{key}");
        assert!(matches!(&error, ConfigError::Unsupported { key, .. } if *key == expected), "{error}");
    }
    let mut config = bitnet_2b4t();
    config["quantization_config"]["modules_to_not_convert"] = json!(["lm_head"]);
    assert!(ModelConfig::from_json(&config.to_string()).is_ok());
}

#[test]
fn biases_that_a_scale_would_multiply() {
    assert!(matches!(refused("attention_bias", json!(true)), ConfigError::Unsupported { .. }));
}

/// A copy of a packed fixture in which `change` has been at one tensor; what loading it says.
fn broken(
    name: &str,
    form: &str,
    change: impl Fn(&str, Dtype, Vec<usize>, Vec<u8>) -> Option<(Dtype, Vec<usize>, Vec<u8>)>,
) -> ModelError {
    let (source, target) = (fixture("bitnet/gqa4-d32").join(form), directory(name));
    fs::copy(source.join("config.json"), target.join("config.json")).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<_> = (tensors.tensors().into_iter())
        .filter_map(|(name, view)| {
            let changed = change(&name, view.dtype(), view.shape().to_vec(), view.data().to_vec())?;
            Some((name, changed))
        })
        .collect();
    let views = (tensors.iter()).map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(target.join("model.safetensors"), &bytes).unwrap();
    let load = || {
        let file = ModelFile::open(&target)?;
        ModelWeights::load(&file, &file.config()?)
    };
    measured(bytes.len(), load).unwrap_err()
}

const PACKED: &str = "model.layers.1.mlp.gate_proj.weight";
const SCALE: &str = "model.layers.1.mlp.gate_proj.weight_scale";

#[test]
fn packed_scales_that_are_missing_or_none() {
    for form in ["autobitlinear", "bitlinear"] {
        let name = format!("packed-scale-{form}");
        let error =
            broken(&name, form, |name, dtype, shape, bytes| (name != SCALE).then_some((dtype, shape, bytes)));
        assert!(matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == SCALE), "{error}");
        // The inverse of the last is not finite.
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
            if form == "autobitlinear" && bad == 1e-45 {
                continue;
            }
            let error = broken(&name, form, |name, dtype, shape, bytes| {
                let bytes = if name == SCALE { bad.to_le_bytes().to_vec() } else { bytes };
                Some((dtype, shape, bytes))
            });
            assert!(matches!(&error, ModelError::TernaryScale { tensor, .. } if tensor == SCALE), "{error}");
        }
        let error = broken(&name, form, |name, dtype, shape, bytes| {
            Some(if name == SCALE { (dtype, vec![2], bytes.repeat(2)) } else { (dtype, shape, bytes) })
        });
        assert!(matches!(&error, ModelError::TensorShape { tensor, .. } if tensor == SCALE), "{error}");
    }
}

#[test]
fn packed_code_3() {
    let error = broken("packed-code", "autobitlinear", |name, dtype, shape, mut bytes| {
        if name == PACKED {
            bytes[128 * 2 + 77] |= 0b11 << 4;
        }
        Some((dtype, shape, bytes))
    });
    // Row 2 of the third quarter of 96 rows.
    let ModelError::Ternary { source: TernaryError::Weight { row: 50, column: 77, got: 2 }, tensor, .. } =
        error
    else {
        panic!("{error}");
    };
    assert_eq!(tensor, PACKED);
}

#[test]
fn packed_tensors_of_another_shape_or_type() {
    let error = broken("packed-shape", "autobitlinear", |name, dtype, shape, bytes| {
        Some(if name == PACKED {
            (dtype, vec![shape[0] / 2, shape[1] * 2], bytes)
        } else {
            (dtype, shape, bytes)
        })
    });
    assert!(matches!(&error, ModelError::TensorShape { expected, .. } if *expected == [24, 128]), "{error}");
    let error = broken("packed-type", "autobitlinear", |name, dtype, shape, bytes| {
        Some((if name == PACKED { Dtype::I8 } else { dtype }, shape, bytes))
    });
    assert!(matches!(&error, ModelError::ElementType { got, .. } if got == "I8"), "{error}");
}

#[test]
fn packed_rows_that_are_no_multiple_of_4() {
    let target = directory("packed-rows");
    let source = fixture("bitnet/gqa4-d32/autobitlinear");
    let mut config: Json = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["intermediate_size"] = json!(95);
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    fs::copy(source.join("model.safetensors"), target.join("model.safetensors")).unwrap();
    let file = ModelFile::open(&target).unwrap();
    let error = file.ternary(&file.config().unwrap(), TensorId::Layer(0, LayerTensor::Gate)).unwrap_err();
    assert!(matches!(error, ModelError::PackedRows { got: 95, .. }), "{error}");
}

#[test]
fn packed_weights_where_those_of_training_are_announced() {
    let target = directory("packed-online");
    let source = fixture("bitnet/gqa4-d32/autobitlinear");
    let mut config: Json = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    config["quantization_config"]["quantization_mode"] = json!("online");
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    fs::copy(source.join("model.safetensors"), target.join("model.safetensors")).unwrap();
    let error = ModelFile::open(&target).unwrap().config().unwrap_err();
    let scale = "model.layers.0.mlp.down_proj.weight_scale";
    assert!(matches!(&error, ModelError::UnknownTensor { tensor, .. } if tensor == scale), "{error}");
}

#[test]
fn rope_scaling_by_one_is_none() {
    // What the converters of BitNet write.
    let plain = tiny::open(&tiny::bitnet()).config().unwrap();
    let writer = tiny::bitnet()
        .set("bitnet.rope.scaling.type", Value::String("linear".into()))
        .set("bitnet.rope.scaling.factor", Value::F32(1.0));
    let config = tiny::open(&writer).config().unwrap();
    assert_eq!(config.rope.frequencies(64).unwrap(), plain.rope.frequencies(64).unwrap());
    assert_eq!(config.fingerprint(), plain.fingerprint());
}
