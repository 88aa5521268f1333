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
            Self::Safetensors => "model.layers.",
        }
    }

    /// The one of two names, GGUF's and that of safetensors files.
    fn pick(self, (gguf, safetensors): (&'static str, &'static str)) -> &'static str {
        match self {
            Self::Gguf => gguf,
            Self::Safetensors => safetensors,
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
        let (name, part) = (format.pick(self.names()), format.pick(part.names()));
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
                let is = |tensor: &LayerTensor| format.pick(tensor.names()) == stem;
                Self::Layer(layer.parse().ok()?, LayerTensor::ALL.into_iter().find(is)?)
            }
            None => Self::ENDS.into_iter().find(|id| format.pick(id.names()) == stem)?,
        };
        // A number can be written in several ways, of which files have one.
        (id.name(format, part) == name).then_some((id, part))
    }

    /// In GGUF and in safetensors files, without the layer's prefix.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::TokenEmbedding => ("token_embd", "model.embed_tokens"),
            Self::FinalNorm => ("output_norm", "model.norm"),
            Self::Head => ("output", "lm_head"),
            Self::Layer(_, tensor) => tensor.names(),
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

    /// Whether its weights are ternary: those of the projections of a BitNet model.
    pub(crate) fn is_ternary(self, config: &ModelConfig) -> bool {
        matches!(self, Self::Layer(_, tensor) if tensor.is_projection()) && config.architecture.is_ternary()
    }

    /// Whether RoPE is applied to what it projects to.
    pub(crate) fn is_rotated(self) -> bool {
        matches!(self, Self::Layer(_, LayerTensor::Query | LayerTensor::Key))
    }
}

impl LayerTensor {
    const ALL: [Self; 11] = [
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionSubNorm,
        Self::AttentionOutput,
        Self::MlpNorm,
        Self::Gate,
        Self::Up,
        Self::MlpSubNorm,
        Self::Down,
    ];

    pub(crate) fn is_projection(self) -> bool {
        !matches!(self, Self::AttentionNorm | Self::MlpNorm) && !self.is_sub_norm()
    }

    /// Whether only some architectures have it; see [`Architecture::has_sub_norms`](crate::Architecture::has_sub_norms).
    pub(crate) fn is_sub_norm(self) -> bool {
        matches!(self, Self::AttentionSubNorm | Self::MlpSubNorm)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_tensors() {
        let layers = LayerTensor::ALL.map(|tensor| TensorId::Layer(12, tensor));
        for id in layers.into_iter().chain(TensorId::ENDS) {
            for format in [Format::Gguf, Format::Safetensors] {
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
            "blk.0.attn_q_norm.weight",
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
