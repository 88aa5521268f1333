//! Weights: both formats give one answer, and bad tensors are refused.

use deltallm_models::gguf::Value;
use deltallm_models::quant::TensorType;
use deltallm_models::{LayerTensor, Matrix, ModelError, ModelFile, ModelWeights, TensorId};
use half::{bf16, f16};
use ndarray::ArrayView2;

use crate::common::files::fixture;
use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;

const QUERY: TensorId = TensorId::Layer(0, LayerTensor::Query);

fn load(file: &ModelFile) -> Result<ModelWeights, ModelError> {
    ModelWeights::load(file, &file.config().expect("valid parameters"))
}

fn assert_equal(left: &ModelWeights, right: &ModelWeights) {
    let table = |table: &Matrix| table.rows(&Vec::from_iter(0..table.dim().0)).unwrap();
    assert_eq!(table(&left.token_embedding), table(&right.token_embedding));
    assert_eq!(left.head.as_ref().map(table), right.head.as_ref().map(table));
    assert_eq!(left.final_norm, right.final_norm);
    assert_eq!(left.layers.len(), right.layers.len());
    for (left, right) in left.layers.iter().zip(&right.layers) {
        assert_eq!(left.attention_norm, right.attention_norm);
        assert_eq!(left.mlp_norm, right.mlp_norm);
        for (name, left, right) in [
            ("query", &left.query, &right.query),
            ("key", &left.key, &right.key),
            ("value", &left.value, &right.value),
            ("attention output", &left.attention_output, &right.attention_output),
            ("gate", &left.gate, &right.gate),
            ("up", &left.up, &right.up),
            ("down", &left.down, &right.down),
        ] {
            assert_eq!(left.weight.to_dense(), right.weight.to_dense(), "{name}");
            assert_eq!(left.bias, right.bias, "{name} bias");
        }
    }
}

/// The fixtures' GGUF files were written by gguf-py with its own permutation of the query and key rows.
#[test]
fn gguf_and_safetensors_of_one_model_give_the_same_weights() {
    for name in ["gqa1-d32", "gqa3-d64-llama3"] {
        let directory = fixture("llama").join(name);
        let gguf = load(&ModelFile::open(directory.join("model.gguf")).unwrap()).unwrap();
        let safetensors = load(&ModelFile::open(&directory).unwrap()).unwrap();
        assert_equal(&gguf, &safetensors);
    }
}

#[test]
fn every_fixture_loads() {
    for (name, head, bias) in [
        ("gqa1-d32", false, false),
        ("gqa2-d32-derived", false, false),
        ("gqa3-d64-llama3", false, false),
        ("gqa4-d80-bias", true, true),
        ("gqa2-d128-llama3", false, false),
        ("gqa8-d32", true, false),
    ] {
        let weights = load(&ModelFile::open(fixture("llama").join(name)).unwrap()).unwrap();
        assert_eq!(weights.head.is_some(), head, "{name}");
        let layer = &weights.layers[1];
        for linear in [&layer.query, &layer.attention_output, &layer.down] {
            assert_eq!(linear.bias.is_some(), bias, "{name}");
            assert!(linear.weight.to_dense().is_standard_layout());
            assert!(linear.bias.as_ref().is_none_or(|bias| bias.len() == linear.weight.dim().0));
        }
    }
}

/// What the converter does to the rows of queries and keys: `reshape(heads, 2, half, ..).swapaxes(1, 2)`.
fn interleave<T: Clone>(rows: &[T], heads: usize) -> Vec<T> {
    let half = rows.len() / heads / 2;
    let mut moved = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                moved.push(rows[(head * 2 + part) * half + i].clone());
            }
        }
    }
    moved
}

/// Rows of queries and keys change their order on the way, whatever the type.
#[test]
fn weights_of_16_bits_stay_so_and_are_those_of_the_file_in_half_split_order() {
    let shape = [tiny::HEADS * tiny::HEAD_DIM, tiny::HIDDEN];
    let numbers = || (0..shape[0] * shape[1]).map(|i| i as f32 * 0.25 - 3.0);
    let f16: Vec<u8> = numbers().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
    let bf16: Vec<u8> = numbers().flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect();
    for (ty, bytes) in [(TensorType::F16, f16), (TensorType::BF16, bf16)] {
        for name in ["blk.0.attn_q.weight", "blk.0.attn_output.weight"] {
            let file = tiny::open(&tiny::llama().tensor(name, &shape, ty, &bytes));
            let config = file.config().unwrap();
            let tensor = if name.contains("_q") { LayerTensor::Query } else { LayerTensor::AttentionOutput };
            let id = TensorId::Layer(0, tensor);
            let weight = file.linear(&config, id).unwrap().weight;
            assert!(matches!(weight, Matrix::F16(_) | Matrix::Bf16(_)), "{name} {ty}");
            assert_eq!(weight.bytes(), bytes.len());
            assert_eq!(weight.to_dense(), file.matrix(&config, id).unwrap(), "{name} {ty}");
            // Rows 1 and 2 of a head of four change places.
            let second = if name.contains("_q") { 2 } else { 1 };
            assert_eq!(weight.row(1).unwrap()[0], (second * shape[1]) as f32 * 0.25 - 3.0);
        }
    }
}

/// A GGUF copy of a model without quantisation, made independently of the reader's name table.
fn to_gguf(weights: &ModelWeights, file: &ModelFile) -> GgufWriter {
    let config = file.config().unwrap();
    let size = |n: usize| Value::U32(n as u32);
    let put_vector =
        |writer: GgufWriter, name: &str, values: &[f32]| writer.f32_tensor(name, &[values.len()], values);
    let put_matrix = |writer: GgufWriter, name: &str, rows: &[Vec<f32>]| {
        writer.f32_tensor(name, &[rows.len(), rows[0].len()], &rows.concat())
    };
    let rows = |matrix: ArrayView2<f32>| matrix.outer_iter().map(|row| row.to_vec()).collect::<Vec<_>>();
    let table = |table: &Matrix| rows(table.rows(&Vec::from_iter(0..table.dim().0)).unwrap().view());
    let mut writer = GgufWriter::new()
        .set("general.architecture", Value::String("llama".into()))
        .set("llama.embedding_length", size(config.hidden_size))
        .set("llama.block_count", size(config.layers))
        .set("llama.attention.head_count", size(config.heads))
        .set("llama.attention.head_count_kv", size(config.kv_heads))
        .set("llama.attention.key_length", size(config.head_dim))
        .set("llama.feed_forward_length", size(config.intermediate_size))
        .set("llama.context_length", size(config.context_length))
        .set("llama.attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps))
        .set("llama.rope.freq_base", Value::F32(config.rope.theta));
    writer = put_matrix(writer, "token_embd.weight", &table(&weights.token_embedding));
    writer = put_vector(writer, "output_norm.weight", &weights.final_norm.to_vec());
    if let Some(head) = &weights.head {
        writer = put_matrix(writer, "output.weight", &table(head));
    }
    for (i, layer) in weights.layers.iter().enumerate() {
        writer = put_vector(writer, &format!("blk.{i}.attn_norm.weight"), &layer.attention_norm.to_vec());
        writer = put_vector(writer, &format!("blk.{i}.ffn_norm.weight"), &layer.mlp_norm.to_vec());
        for (name, linear, heads) in [
            ("attn_q", &layer.query, config.heads),
            ("attn_k", &layer.key, config.kv_heads),
            ("attn_v", &layer.value, 0),
            ("attn_output", &layer.attention_output, 0),
            ("ffn_gate", &layer.gate, 0),
            ("ffn_up", &layer.up, 0),
            ("ffn_down", &layer.down, 0),
        ] {
            let mut matrix = rows(linear.weight.to_dense().view());
            let mut bias: Vec<f32> = linear.bias.iter().flatten().copied().collect();
            if heads > 0 {
                (matrix, bias) = (interleave(&matrix, heads), interleave(&bias, heads));
            }
            writer = put_matrix(writer, &format!("blk.{i}.{name}.weight"), &matrix);
            if !bias.is_empty() {
                writer = put_vector(writer, &format!("blk.{i}.{name}.bias"), &bias);
            }
        }
    }
    writer
}

#[test]
fn biases_and_untied_heads_survive_conversion_to_gguf() {
    for name in ["gqa4-d80-bias", "gqa8-d32"] {
        let directory = ModelFile::open(fixture("llama").join(name)).unwrap();
        let expected = load(&directory).unwrap();
        let gguf = tiny::open(&to_gguf(&expected, &directory));
        assert_eq!(gguf.config().unwrap(), directory.config().unwrap());
        assert_equal(&load(&gguf).unwrap(), &expected);
    }
}

#[test]
fn progress_runs_to_the_total() {
    let file = tiny::open(&tiny::llama());
    let mut calls = Vec::new();
    ModelWeights::load_with(&file, &file.config().unwrap(), |done, total| calls.push((done, total))).unwrap();
    assert_eq!(calls, [(0, 3), (1, 3), (2, 3), (3, 3)]);
}

#[test]
fn quantised_rows_are_converted_and_permuted() {
    // Row r of the file is 32 times r + 1; heads of 4 rows are stored as 0, 2, 1, 3.
    let block = |r: usize| [half::f16::from_f32((r + 1) as f32).to_le_bytes().to_vec(), vec![1; 32]].concat();
    let bytes: Vec<u8> = (0..8).flat_map(block).collect();
    let writer = tiny::llama()
        .set("llama.embedding_length", Value::U32(32))
        .set("llama.attention.key_length", Value::U32(4))
        .tensor("blk.0.attn_q.weight", &[8, 32], TensorType::Q8_0, &bytes);
    let file = tiny::open(&writer);
    let matrix = file.matrix(&file.config().unwrap(), QUERY).unwrap();
    assert_eq!(matrix.column(31).to_vec(), [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
}
