//! Biases: each projection of each layer has its own or none.

use std::fs;

use deltallm_models::gguf::Value;
use deltallm_models::{LayerTensor, LogitRows, Model, ModelError, ModelFile, TensorId};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};

use crate::common::files::{directory, fixture};
use crate::common::gguf_writer::GgufWriter;
use crate::common::models::dense_kernels;
use crate::common::tiny;

/// A projection, its name in GGUF files, and its rows in the tiny model.
const PROJECTIONS: [(LayerTensor, &str, usize); 7] = [
    (LayerTensor::Query, "attn_q", tiny::HEADS * tiny::HEAD_DIM),
    (LayerTensor::Key, "attn_k", tiny::KV_HEADS * tiny::HEAD_DIM),
    (LayerTensor::Value, "attn_v", tiny::KV_HEADS * tiny::HEAD_DIM),
    (LayerTensor::AttentionOutput, "attn_output", tiny::HIDDEN),
    (LayerTensor::Gate, "ffn_gate", tiny::FFN),
    (LayerTensor::Up, "ffn_up", tiny::FFN),
    (LayerTensor::Down, "ffn_down", tiny::HIDDEN),
];

fn with_bias(writer: GgufWriter, layer: usize, name: &str, values: &[f32]) -> GgufWriter {
    writer.f32_tensor(&format!("blk.{layer}.{name}.bias"), &[values.len()], values)
}

#[test]
fn a_bias_is_read_wherever_the_file_has_one() {
    for (tensor, name, rows) in PROJECTIONS {
        for layer in 0..2 {
            let values: Vec<f32> = (0..rows).map(|row| row as f32 + 0.5).collect();
            let file = tiny::open(&with_bias(tiny::two_layers(), layer, name, &values));
            let config = file.config().unwrap();
            for (other, other_name, _) in PROJECTIONS {
                for at in 0..2 {
                    let bias = file.linear(&config, TensorId::Layer(at, other)).unwrap().bias;
                    let expected = other == tensor && at == layer;
                    assert_eq!(
                        bias.is_some(),
                        expected,
                        "{name} of layer {layer}: {other_name} of layer {at}"
                    );
                }
            }
            let bias = file.bias(&config, TensorId::Layer(layer, tensor)).unwrap().unwrap();
            let mut expected = values.clone();
            if ["attn_q", "attn_k"].contains(&name) {
                // Heads of four rows are stored as 0, 2, 1, 3.
                expected.chunks_exact_mut(4).for_each(|head| head.swap(1, 2));
            }
            assert_eq!(bias.to_vec(), expected, "{name}");
        }
    }
}

#[test]
fn a_bias_that_is_not_there_is_one_of_zeros() {
    let logits = |writer: &GgufWriter| {
        let model = Model::load(&tiny::open(writer)).unwrap();
        model.forward(&[1, 2, 4, 3], &mut dense_kernels(&model), LogitRows::All).unwrap()
    };
    let plain = logits(&tiny::two_layers_of_small_numbers());
    for (_, name, rows) in PROJECTIONS {
        for layer in 0..2 {
            let values: Vec<f32> = (0..rows).map(|row| (row as f32).sin()).collect();
            let some = with_bias(tiny::two_layers_of_small_numbers(), layer, name, &values);
            let mut all = with_bias(tiny::two_layers_of_small_numbers(), layer, name, &values);
            for (_, other, rows) in PROJECTIONS {
                for at in 0..2 {
                    if (other, at) != (name, layer) {
                        all = with_bias(all, at, other, &vec![0.0; rows]);
                    }
                }
            }
            assert_eq!(logits(&some), logits(&all), "{name} of layer {layer}");
            // Of the last layer's queries and keys too: the bias of a query is rotated.
            assert_ne!(logits(&some), plain, "{name} of layer {layer}");
        }
    }
}

/// A directory with the fixture's model, its configuration changed, and biases of ones.
fn with_biases(name: &str, change: &Json, biases: &[(&str, usize)]) -> ModelFile {
    let (source, target) = (fixture("llama/gqa1-d32"), directory(name));
    let mut config: Json = serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(target.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(source.join("model.safetensors")).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ones: Vec<_> = biases.iter().map(|(_, rows)| 1.0_f32.to_le_bytes().repeat(*rows)).collect();
    let views = biases.iter().zip(&ones).map(|((name, rows), ones)| {
        ((*name).to_owned(), TensorView::new(Dtype::F32, vec![*rows], ones).unwrap())
    });
    let tensors = whole.tensors().into_iter().chain(views);
    fs::write(target.join("model.safetensors"), safetensors::serialize(tensors, None).unwrap()).unwrap();
    ModelFile::open(&target).unwrap()
}

/// As of models made from Qwen 2; `transformers` takes zeros for the one that is missing.
#[test]
fn a_directory_may_have_fewer_biases_than_its_configuration_says() {
    let biases = ["q", "k", "v"].map(|name| (format!("model.layers.0.self_attn.{name}_proj.bias"), 64));
    let biases = biases.each_ref().map(|(name, rows)| (name.as_str(), *rows));
    let file = with_biases("biases-without-o", &json!({"attention_bias": true}), &biases);
    let weights = Model::load(&file).unwrap();
    let [first, second] = &weights.weights().layers[..] else { panic!("two layers") };
    assert!([&first.query, &first.key, &first.value].iter().all(|linear| linear.bias.is_some()));
    assert!(first.attention_output.bias.is_none());
    assert!([&second.query, &second.key, &second.value].iter().all(|linear| linear.bias.is_none()));
}

#[test]
fn a_bias_that_the_configuration_denies_is_refused_by_name() {
    for (tensor, rows) in [
        ("model.layers.1.self_attn.k_proj.bias", 64),
        ("model.layers.0.self_attn.o_proj.bias", 12),
        ("model.layers.0.mlp.down_proj.bias", 12),
    ] {
        let error = with_biases("denied-bias", &json!({}), &[(tensor, rows)]).config().unwrap_err();
        assert!(matches!(&error, ModelError::UnknownTensor { tensor: got, .. } if got == tensor), "{error}");
    }
}

#[test]
fn parameters_say_which_kinds_of_biases_a_gguf_file_has() {
    for (name, expected) in [
        ("attn_k", [true, false, false]),
        ("attn_output", [false, true, false]),
        ("ffn_gate", [false, false, true]),
    ] {
        let rows = PROJECTIONS.iter().find(|(_, other, _)| *other == name).unwrap().2;
        let writer = with_bias(tiny::two_layers(), 1, name, &vec![0.0; rows]);
        let config = tiny::config(&writer.set("llama.block_count", Value::U32(2))).unwrap();
        let got = [config.attention_bias, config.attention_output_bias, config.mlp_bias];
        assert_eq!(got, expected, "{name}");
    }
}

/// The class of the family has them on q, k and v of every layer.
#[test]
fn a_bias_that_the_family_always_has_must_be_there() {
    let folder = fixture("qwen2").join("window");
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["q_proj", "k_proj", "v_proj"] {
        let missing = format!("model.layers.1.self_attn.{name}.bias");
        let others = tensors.tensors().into_iter().filter(|(tensor, _)| *tensor != missing);
        let others = safetensors::serialize(others, None).unwrap();
        let copy = directory(&format!("qwen2-without-{name}"));
        fs::copy(folder.join("config.json"), copy.join("config.json")).unwrap();
        fs::write(copy.join("model.safetensors"), others).unwrap();
        let error = Model::load(&ModelFile::open(&copy).unwrap()).unwrap_err();
        assert!(matches!(error, ModelError::MissingTensor { tensor, .. } if tensor == missing));
    }
}
