//! The tensors of a model: their names in each format and their shapes.

use crate::ModelConfig;

/// A tensor of a model, independent of the file format.
///
/// Formats differ in more than names: GGUF files of Llama models hold the rows of [`LayerTensor::Query`] and
/// [`LayerTensor::Key`] reordered for interleaved RoPE, all others in half-split order. Readers of this crate answer
/// half-split order always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorId {
    /// The token embedding.
    TokenEmbedding,
    /// The norm before the head.
    FinalNorm,
    /// The head, where it is not the embedding.
    Head,
    /// A tensor of the layer of that number.
    Layer(usize, LayerTensor),
}

/// A tensor of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerTensor {
    /// The norm before attention.
    AttentionNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// The norm before attention's output projection, in BitNet models.
    AttentionSubNorm,
    /// Attention's output projection.
    AttentionOutput,
    /// The norm before the MLP.
    MlpNorm,
    /// The MLP's gate.
    Gate,
    /// The MLP's other input projection.
    Up,
    /// The norm before the MLP's output projection, in BitNet models.
    MlpSubNorm,
    /// The MLP's output projection.
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "gguf", feature = "safetensors")), allow(dead_code))]
pub(crate) enum Format {
    Gguf,
    Safetensors,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
    /// What ternary weights are multiplied with, or divided by.
    Scale,
}

impl TensorId {
    pub(crate) fn name(self, format: Format, part: Part) -> String {
        let part = match (part, format) {
            (Part::Weight, _) => "weight",
            (Part::Bias, _) => "bias",
            (Part::Scale, Format::Gguf) => "scale",
            (Part::Scale, Format::Safetensors) => "weight_scale",
        };
        let (gguf, safetensors) = match self {
            Self::TokenEmbedding => ("token_embd", "model.embed_tokens"),
            Self::FinalNorm => ("output_norm", "model.norm"),
            Self::Head => ("output", "lm_head"),
            Self::Layer(_, tensor) => tensor.names(),
        };
        match (self, format) {
            (Self::Layer(layer, _), Format::Gguf) => format!("blk.{layer}.{gguf}.{part}"),
            (Self::Layer(layer, _), Format::Safetensors) => {
                format!("model.layers.{layer}.{safetensors}.{part}")
            }
            (_, Format::Gguf) => format!("{gguf}.{part}"),
            (_, Format::Safetensors) => format!("{safetensors}.{part}"),
        }
    }

    /// `[out, in]`; for a norm `[length, 1]`.
    pub(crate) fn shape(self, config: &ModelConfig) -> [usize; 2] {
        let hidden = config.hidden_size;
        let queries = config.heads * config.head_dim;
        let keys = config.kv_heads * config.head_dim;
        match self {
            Self::TokenEmbedding | Self::Head => [config.vocab_size, hidden],
            Self::FinalNorm => [hidden, 1],
            Self::Layer(_, tensor) => match tensor {
                LayerTensor::AttentionNorm | LayerTensor::MlpNorm => [hidden, 1],
                LayerTensor::AttentionSubNorm => [queries, 1],
                LayerTensor::MlpSubNorm => [config.intermediate_size, 1],
                LayerTensor::Query => [queries, hidden],
                LayerTensor::Key | LayerTensor::Value => [keys, hidden],
                LayerTensor::AttentionOutput => [hidden, queries],
                LayerTensor::Gate | LayerTensor::Up => [config.intermediate_size, hidden],
                LayerTensor::Down => [hidden, config.intermediate_size],
            },
        }
    }

    pub(crate) fn has_bias(self, config: &ModelConfig) -> bool {
        let Self::Layer(_, tensor) = self else { return false };
        match tensor {
            LayerTensor::AttentionNorm
            | LayerTensor::AttentionSubNorm
            | LayerTensor::MlpNorm
            | LayerTensor::MlpSubNorm => false,
            LayerTensor::Query | LayerTensor::Key | LayerTensor::Value => config.attention_bias,
            LayerTensor::AttentionOutput => config.attention_output_bias,
            LayerTensor::Gate | LayerTensor::Up | LayerTensor::Down => config.mlp_bias,
        }
    }

    /// Whether its weights are ternary: those of the projections of a BitNet model.
    pub(crate) fn is_ternary(self, config: &ModelConfig) -> bool {
        use LayerTensor::{AttentionOutput, Down, Gate, Key, Query, Up, Value};
        let projection =
            matches!(self, Self::Layer(_, Query | Key | Value | AttentionOutput | Gate | Up | Down));
        projection && config.architecture.is_ternary()
    }

    /// Whether RoPE is applied to what it projects to.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Layer(_, LayerTensor::Query | LayerTensor::Key))
    }
}

impl LayerTensor {
    /// In GGUF and in safetensors files, without the layer's prefix.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::AttentionNorm => ("attn_norm", "input_layernorm"),
            Self::Query => ("attn_q", "self_attn.q_proj"),
            Self::Key => ("attn_k", "self_attn.k_proj"),
            Self::Value => ("attn_v", "self_attn.v_proj"),
            Self::AttentionSubNorm => ("attn_sub_norm", "self_attn.attn_sub_norm"),
            Self::AttentionOutput => ("attn_output", "self_attn.o_proj"),
            Self::MlpNorm => ("ffn_norm", "post_attention_layernorm"),
            Self::Gate => ("ffn_gate", "mlp.gate_proj"),
            Self::Up => ("ffn_up", "mlp.up_proj"),
            Self::MlpSubNorm => ("ffn_sub_norm", "mlp.ffn_sub_norm"),
            Self::Down => ("ffn_down", "mlp.down_proj"),
        }
    }
}
