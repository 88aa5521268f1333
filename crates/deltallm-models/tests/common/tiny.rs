//! Valid one-layer models in GGUF form, to be broken in one place by each test.

use deltallm_models::gguf::Value;
use deltallm_models::quant::TensorType;
use deltallm_models::{ConfigError, ModelConfig, ModelError, ModelFile};

use super::bitnet::{pack, to_bytes};
use super::gguf_writer::GgufWriter;

pub(crate) const HIDDEN: usize = 8;
pub(crate) const HEADS: usize = 2;
pub(crate) const KV_HEADS: usize = 1;
pub(crate) const HEAD_DIM: usize = 4;
pub(crate) const FFN: usize = 6;
pub(crate) const VOCAB: usize = 5;

pub(crate) fn llama() -> GgufWriter {
    layers_of(1, |i| i as f32)
}

pub(crate) fn two_layers() -> GgufWriter {
    layers_of(2, |i| i as f32)
}

/// Weights with which every part of a layer matters for the result.
pub(crate) fn two_layers_of_small_numbers() -> GgufWriter {
    layers_of(2, |i| (i as f32 * 0.7).sin())
}

fn layers_of(layers: usize, number: impl Fn(usize) -> f32) -> GgufWriter {
    let size = |n: usize| Value::U32(n as u32);
    let writer = GgufWriter::new()
        .set("general.architecture", Value::String("llama".into()))
        .set("llama.embedding_length", size(HIDDEN))
        .set("llama.block_count", size(layers))
        .set("llama.attention.head_count", size(HEADS))
        .set("llama.attention.head_count_kv", size(KV_HEADS))
        .set("llama.feed_forward_length", size(FFN))
        .set("llama.context_length", size(64))
        .set("llama.vocab_size", size(VOCAB))
        .set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))
        .set("llama.rope.freq_base", Value::F32(10_000.0));
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("output_norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..layers {
        for (name, shape) in [
            ("attn_norm", vec![HIDDEN]),
            ("attn_q", vec![HEADS * HEAD_DIM, HIDDEN]),
            ("attn_k", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("attn_v", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
            ("attn_output", vec![HIDDEN, HEADS * HEAD_DIM]),
            ("ffn_norm", vec![HIDDEN]),
            ("ffn_gate", vec![FFN, HIDDEN]),
            ("ffn_up", vec![FFN, HIDDEN]),
            ("ffn_down", vec![HIDDEN, FFN]),
        ] {
            shapes.push((format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    shapes.iter().fold(writer, |writer, (name, shape)| {
        let values: Vec<f32> = (0..shape.iter().product()).map(&number).collect();
        writer.f32_tensor(name, shape, &values)
    })
}

/// The parameters of one layer: 4 heads over 2 of 64 channels, MLP of 512.
pub(crate) fn parameters(architecture: &str, vocab: u32) -> GgufWriter {
    let mut writer = GgufWriter::new().set("general.architecture", Value::String(architecture.into()));
    for (key, size) in [
        ("embedding_length", 256),
        ("block_count", 1),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("feed_forward_length", 512),
        ("context_length", 64),
        ("vocab_size", vocab),
    ] {
        writer = writer.set(&format!("{architecture}.{key}"), Value::U32(size));
    }
    for (key, number) in [("attention.layer_norm_rms_epsilon", 1e-5), ("rope.freq_base", 10_000.0)] {
        writer = writer.set(&format!("{architecture}.{key}"), Value::F32(number));
    }
    writer
}

pub(crate) fn bitnet() -> GgufWriter {
    bitnet_named("bitnet")
}

/// A BitNet model of that `general.architecture`: 4 heads over 2 of 64 channels, MLP of 512, projections of several types.
pub(crate) fn bitnet_named(architecture: &str) -> GgufWriter {
    let mut writer = parameters(architecture, VOCAB as u32);
    for (name, length) in [
        ("output_norm", 256),
        ("blk.0.attn_norm", 256),
        ("blk.0.attn_sub_norm", 256),
        ("blk.0.ffn_norm", 256),
        ("blk.0.ffn_sub_norm", 512),
    ] {
        writer = writer.f32_tensor(&format!("{name}.weight"), &[length], &vec![1.0; length]);
    }
    writer = writer.f32_tensor("token_embd.weight", &[VOCAB, 256], &[0.25; VOCAB * 256]);
    for (name, rows, columns, ty) in [
        ("attn_q", 256, 256, TensorType::I2_S),
        ("attn_k", 128, 256, TensorType::I2_S),
        ("attn_v", 128, 256, TensorType::TQ1_0),
        ("attn_output", 256, 256, TensorType::TQ2_0),
        ("ffn_gate", 512, 256, TensorType::F16),
        ("ffn_up", 512, 256, TensorType::I2_S),
        ("ffn_down", 256, 512, TensorType::I2_S),
    ] {
        let codes: Vec<i8> = (0..rows * columns).map(|place| (place % 3) as i8 - 1).collect();
        let bytes = match ty {
            TensorType::F16 => to_bytes(ty, &Vec::from_iter(codes.iter().map(|&code| f32::from(code)))),
            _ => pack(ty, &codes, 0.5),
        };
        writer = writer.tensor(&format!("blk.0.{name}.weight"), &[rows, columns], ty, &bytes);
    }
    writer
}

pub(crate) fn open(writer: &GgufWriter) -> ModelFile {
    ModelFile::from_gguf_bytes("tiny", writer.finish()).expect("a valid file")
}

pub(crate) fn config(writer: &GgufWriter) -> Result<ModelConfig, ConfigError> {
    open(writer).config().map_err(|error| match error {
        ModelError::Config { source, .. } => source,
        other => panic!("expected a configuration error, got {other}"),
    })
}
