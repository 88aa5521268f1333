//! The tensors of a model: their names in each format and their shapes.

use crate::{Architecture, ModelConfig};

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
    /// The norm of each head of queries, in some families.
    QueryNorm,
    /// Key projection.
    Key,
    /// The norm of each head of keys, in some families.
    KeyNorm,
    /// Value projection.
    Value,
    /// The norm before attention's output projection, in BitNet models.
    AttentionSubNorm,
    /// Attention's output projection.
    AttentionOutput,
    /// The norm behind attention, in Gemma models.
    AttentionPostNorm,
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
    /// The norm behind the MLP, in Gemma models.
    MlpPostNorm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(all(feature = "gguf", feature = "safetensors")), allow(dead_code))]
pub(crate) enum Format {
    Gguf,
    Safetensors,
    /// Safetensors files of families with norms behind attention and MLP, one of which has the name that is the norm's before
    /// the MLP elsewhere.
    SafetensorsWithPostNorms,
}

/// The divisors of the RoPE frequencies in a GGUF file: parameters, though they lie there as a tensor.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
    /// What ternary weights are multiplied with, or divided by.
    Scale,
}

impl Format {
    /// What the names of a layer's tensors begin with, before its number.
    fn layers(self) -> &'static str {
        match self {
            Self::Gguf => "blk.",
            Self::Safetensors | Self::SafetensorsWithPostNorms => "model.layers.",
        }
    }

    /// The one of two names, GGUF's and that of safetensors files.
    fn pick(self, (gguf, safetensors): (&'static str, &'static str)) -> &'static str {
        match self {
            Self::Gguf => gguf,
            Self::Safetensors | Self::SafetensorsWithPostNorms => safetensors,
        }
    }
}

impl Part {
    const ALL: [Self; 3] = [Self::Weight, Self::Bias, Self::Scale];

    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Weight => ("weight", "weight"),
            Self::Bias => ("bias", "bias"),
            Self::Scale => ("scale", "weight_scale"),
        }
    }
}

impl TensorId {
    /// Those that are no layer's.
    const ENDS: [Self; 3] = [Self::TokenEmbedding, Self::FinalNorm, Self::Head];

    pub(crate) fn name(self, format: Format, part: Part) -> String {
        let (name, part) = (self.stem(format), format.pick(part.names()));
        match self {
            Self::Layer(layer, _) => format!("{}{layer}.{name}.{part}", format.layers()),
            _ => format!("{name}.{part}"),
        }
    }

    /// The tensor that has that name in a file; `None` for a name that no tensor has.
    pub(crate) fn parse(format: Format, name: &str) -> Option<(Self, Part)> {
        let (stem, part) = name.rsplit_once('.')?;
        let part = Part::ALL.into_iter().find(|known| format.pick(known.names()) == part)?;
        let id = match stem.strip_prefix(format.layers()) {
            Some(rest) => {
                let (layer, stem) = rest.split_once('.')?;
                let is = |tensor: &LayerTensor| tensor.stem(format) == stem;
                Self::Layer(layer.parse().ok()?, LayerTensor::ALL.into_iter().find(is)?)
            }
            None => Self::ENDS.into_iter().find(|id| id.stem(format) == stem)?,
        };
        // A number can be written in several ways, of which files have one.
        (id.name(format, part) == name).then_some((id, part))
    }

    /// The name without the layer's prefix and without the part.
    fn stem(self, format: Format) -> &'static str {
        match self {
            Self::TokenEmbedding => format.pick(("token_embd", "model.embed_tokens")),
            Self::FinalNorm => format.pick(("output_norm", "model.norm")),
            Self::Head => format.pick(("output", "lm_head")),
            Self::Layer(_, tensor) => tensor.stem(format),
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
                LayerTensor::AttentionNorm
                | LayerTensor::AttentionPostNorm
                | LayerTensor::MlpNorm
                | LayerTensor::MlpPostNorm => [hidden, 1],
                LayerTensor::QueryNorm | LayerTensor::KeyNorm => [config.head_dim, 1],
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

    /// Whether its weights are ternary: those of the projections of a BitNet model.
    pub(crate) fn is_ternary(self, config: &ModelConfig) -> bool {
        matches!(self, Self::Layer(_, tensor) if tensor.is_projection()) && config.architecture.is_ternary()
    }

    /// Whether its projection has a bias in every model of the family: q, k and v of Qwen 2.
    pub(crate) fn has_bias_always(self, config: &ModelConfig) -> bool {
        let of_qkv =
            matches!(self, Self::Layer(_, LayerTensor::Query | LayerTensor::Key | LayerTensor::Value));
        of_qkv && config.architecture == Architecture::Qwen2
    }

    /// Whether RoPE is applied to what it projects to.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Layer(_, LayerTensor::Query | LayerTensor::Key))
    }
}

impl LayerTensor {
    /// Of two with the same name, which a format has only one of, the first.
    const ALL: [Self; 15] = [
        Self::AttentionNorm,
        Self::Query,
        Self::QueryNorm,
        Self::Key,
        Self::KeyNorm,
        Self::Value,
        Self::AttentionSubNorm,
        Self::AttentionOutput,
        Self::MlpNorm,
        Self::AttentionPostNorm,
        Self::Gate,
        Self::Up,
        Self::MlpSubNorm,
        Self::Down,
        Self::MlpPostNorm,
    ];

    pub(crate) fn is_projection(self) -> bool {
        matches!(
            self,
            Self::Query
                | Self::Key
                | Self::Value
                | Self::AttentionOutput
                | Self::Gate
                | Self::Up
                | Self::Down
        )
    }

    /// Whether models of that family have it.
    pub(crate) fn is_in(self, architecture: Architecture) -> bool {
        match self {
            Self::AttentionSubNorm | Self::MlpSubNorm => architecture.has_sub_norms(),
            Self::QueryNorm | Self::KeyNorm => architecture.has_head_norms(),
            Self::AttentionPostNorm | Self::MlpPostNorm => architecture.has_post_norms(),
            _ => true,
        }
    }

    /// The name without the layer's prefix and without the part.
    fn stem(self, format: Format) -> &'static str {
        format.pick(match self {
            Self::AttentionNorm => ("attn_norm", "input_layernorm"),
            Self::Query => ("attn_q", "self_attn.q_proj"),
            Self::QueryNorm => ("attn_q_norm", "self_attn.q_norm"),
            Self::Key => ("attn_k", "self_attn.k_proj"),
            Self::KeyNorm => ("attn_k_norm", "self_attn.k_norm"),
            Self::Value => ("attn_v", "self_attn.v_proj"),
            Self::AttentionSubNorm => ("attn_sub_norm", "self_attn.attn_sub_norm"),
            Self::AttentionOutput => ("attn_output", "self_attn.o_proj"),
            Self::AttentionPostNorm => ("post_attention_norm", "post_attention_layernorm"),
            Self::MlpNorm if format == Format::SafetensorsWithPostNorms => ("", "pre_feedforward_layernorm"),
            Self::MlpNorm => ("ffn_norm", "post_attention_layernorm"),
            Self::Gate => ("ffn_gate", "mlp.gate_proj"),
            Self::Up => ("ffn_up", "mlp.up_proj"),
            Self::MlpSubNorm => ("ffn_sub_norm", "mlp.ffn_sub_norm"),
            Self::Down => ("ffn_down", "mlp.down_proj"),
            Self::MlpPostNorm => ("post_ffw_norm", "post_feedforward_layernorm"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_tensors() {
        let layers = LayerTensor::ALL.map(|tensor| TensorId::Layer(12, tensor));
        for id in layers.into_iter().chain(TensorId::ENDS) {
            for format in [Format::Gguf, Format::Safetensors, Format::SafetensorsWithPostNorms] {
                if format == Format::Safetensors && id == TensorId::Layer(12, LayerTensor::AttentionPostNorm)
                {
                    continue;
                }
                for part in Part::ALL {
                    assert_eq!(TensorId::parse(format, &id.name(format, part)), Some((id, part)));
                }
            }
        }
    }

    #[test]
    fn other_names_lead_nowhere() {
        for name in [
            "",
            "weight",
            "blk.0.weight",
            "blk.attn_q.weight",
            "blk.00.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.0.attn_v_norm.weight",
            "blk.0.attn_q.weight.weight",
            "blk.99999999999999999999999.attn_q.weight",
            "attn_q.weight",
            "blk.0.output.weight",
            "model.norm.weight",
        ] {
            assert_eq!(TensorId::parse(Format::Gguf, name), None, "{name}");
        }
    }
}
