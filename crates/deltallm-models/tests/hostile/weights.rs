//! Tensors that do not fit their model, and weights that are no numbers, by name.

use deltallm_models::gguf::Value;
use deltallm_models::quant::TensorType;
use deltallm_models::{LayerTensor, ModelError, ModelFile, ModelWeights, TensorId};

use crate::common::gguf_writer::GgufWriter;
use crate::common::tiny;
use crate::measured;

const QUERY: TensorId = TensorId::Layer(0, LayerTensor::Query);

fn load(writer: &GgufWriter) -> Result<ModelWeights, ModelError> {
    let bytes = writer.finish();
    measured(bytes.len(), || {
        let file = ModelFile::from_gguf_bytes("tiny", bytes)?;
        ModelWeights::load(&file, &file.config()?)
    })
}

#[test]
fn missing_tensor() {
    let writer = tiny::llama().without_tensor("blk.0.ffn_up.weight");
    assert_eq!(load(&writer).unwrap_err().to_string(), "tiny: tensor `blk.0.ffn_up.weight` is missing");
}

#[test]
fn more_layers_than_the_file_has() {
    let error = load(&tiny::llama().set("llama.block_count", Value::U32(1 << 12))).unwrap_err();
    assert!(matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == "blk.1.attn_norm.weight"));
    let error = load(&tiny::llama().set("llama.block_count", Value::U32(1 << 24))).unwrap_err().to_string();
    assert!(error.contains("layers") && error.contains("4096"), "{error}");
}

#[test]
fn larger_heads_than_any_model_has() {
    let writer = tiny::llama().set("llama.attention.key_length", Value::U32(1 << 17));
    let error = load(&writer).unwrap_err().to_string();
    assert!(error.contains("head size") && error.contains("65536"), "{error}");
}

#[test]
fn transposed_tensor() {
    let values = vec![0.0; tiny::FFN * tiny::HIDDEN];
    let writer = tiny::llama().f32_tensor("blk.0.ffn_up.weight", &[tiny::HIDDEN, tiny::FFN], &values);
    let error = load(&writer).unwrap_err();
    assert!(
        matches!(&error, ModelError::TensorShape { expected, got, .. } if *expected == [6, 8] && *got == [8, 6])
    );
    assert_eq!(error.to_string(), "tiny: tensor `blk.0.ffn_up.weight`: expected shape [6, 8], got [8, 6]");
}

#[test]
fn vector_where_a_matrix_should_be_and_back() {
    let writer = tiny::llama().f32_tensor("blk.0.ffn_up.weight", &[48], &[0.0; 48]);
    assert!(matches!(load(&writer), Err(ModelError::TensorShape { .. })));
    let writer = tiny::llama().f32_tensor("output_norm.weight", &[1, 8], &[0.0; 8]);
    assert!(matches!(load(&writer), Err(ModelError::TensorShape { .. })));
}

#[test]
fn nan_and_infinite_weights() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![0.0; tiny::FFN * tiny::HIDDEN];
        values[3 * tiny::HIDDEN + 5] = bad;
        let writer = tiny::llama().f32_tensor("blk.0.ffn_up.weight", &[tiny::FFN, tiny::HIDDEN], &values);
        let error = load(&writer).unwrap_err();
        assert!(matches!(error, ModelError::NonFiniteWeight { row: 3, column: 5, .. }), "{error}");
    }
}

#[test]
fn nan_scales_of_quantised_types() {
    for ty in TensorType::ALL.into_iter().filter(|ty| ty.block_elements() == 32) {
        let mut bytes = vec![0x11; 8 * ty.block_bytes()];
        // The scale of the last block is a NaN.
        let last = 7 * ty.block_bytes();
        bytes[last..last + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
        let writer = tiny::llama()
            .set("llama.embedding_length", Value::U32(32))
            .set("llama.attention.key_length", Value::U32(4))
            .tensor("blk.0.attn_q.weight", &[8, 32], ty, &bytes);
        let file = tiny::open(&writer);
        let config = file.config().unwrap();
        let error = measured(writer.finish().len(), || file.matrix(&config, QUERY)).unwrap_err();
        assert!(matches!(error, ModelError::NonFiniteWeight { row: 7, column: 0, .. }), "{ty}: {error}");
    }
}
