//! A valid one-layer Llama model in GGUF form, to be broken in one place by each test.

use deltallm_models::gguf::Value;
use deltallm_models::{ConfigError, ModelConfig, ModelError, ModelFile};

use crate::common::gguf_writer::GgufWriter;

pub(crate) const HIDDEN: usize = 8;
pub(crate) const HEADS: usize = 2;
pub(crate) const KV_HEADS: usize = 1;
pub(crate) const HEAD_DIM: usize = 4;
pub(crate) const FFN: usize = 6;
pub(crate) const VOCAB: usize = 5;

pub(crate) fn llama() -> GgufWriter {
    let size = |n: usize| Value::U32(n as u32);
    let writer = GgufWriter::new()
        .set("general.architecture", Value::String("llama".into()))
        .set("llama.embedding_length", size(HIDDEN))
        .set("llama.block_count", size(1))
        .set("llama.attention.head_count", size(HEADS))
        .set("llama.attention.head_count_kv", size(KV_HEADS))
        .set("llama.feed_forward_length", size(FFN))
        .set("llama.context_length", size(64))
        .set("llama.vocab_size", size(VOCAB))
        .set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))
        .set("llama.rope.freq_base", Value::F32(10_000.0));
    let shapes: [(&str, Vec<usize>); 11] = [
        ("token_embd.weight", vec![VOCAB, HIDDEN]),
        ("output_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![HEADS * HEAD_DIM, HIDDEN]),
        ("blk.0.attn_k.weight", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
        ("blk.0.attn_v.weight", vec![KV_HEADS * HEAD_DIM, HIDDEN]),
        ("blk.0.attn_output.weight", vec![HIDDEN, HEADS * HEAD_DIM]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_gate.weight", vec![FFN, HIDDEN]),
        ("blk.0.ffn_up.weight", vec![FFN, HIDDEN]),
        ("blk.0.ffn_down.weight", vec![HIDDEN, FFN]),
    ];
    shapes.iter().fold(writer, |writer, (name, shape)| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32).collect();
        writer.f32_tensor(name, shape, &values)
    })
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
