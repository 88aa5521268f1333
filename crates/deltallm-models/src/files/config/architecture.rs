//! The families of models, which differ from each other in a few places of one graph.

/// A family of models. All are decoders with RMSNorm, rotary positions, grouped-query attention and a gated MLP; the
/// methods say where they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama (Touvron et al., arXiv 2302.13971; grouped-query attention as in Llama 2 and 3).
    Llama,
    /// BitNet b1.58 (Ma et al., arXiv 2402.17764; the 2B4T model, arXiv 2504.12285).
    BitNet,
}

/// What the gate of the MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)^2`.
    SquaredRelu,
}

impl Architecture {
    /// Its name, as fingerprints begin with it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::BitNet => "bitnet",
        }
    }

    /// The activation of the MLP. GGUF files do not say it.
    pub fn activation(self) -> Activation {
        match self {
            Self::Llama => Activation::Silu,
            Self::BitNet => Activation::SquaredRelu,
        }
    }

    /// Whether projections have ternary weights and 8-bit inputs. Embedding, head and norms never do.
    pub fn is_ternary(self) -> bool {
        self == Self::BitNet
    }

    /// Whether there is a norm before each output projection: the attention's and the MLP's.
    pub fn has_sub_norms(self) -> bool {
        self == Self::BitNet
    }

    /// Whether GGUF files hold the rows of queries and keys in interleaved RoPE order.
    pub(crate) fn is_interleaved_in_gguf(self) -> bool {
        self == Self::Llama
    }

    /// The family that a GGUF file's `general.architecture` names.
    #[cfg(feature = "gguf")]
    pub(crate) fn from_gguf_name(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            // The second is what the published 2B4T file says, the third what an early converter said.
            "bitnet" | "bitnet-b1.58" | "bitnet-25" => Some(Self::BitNet),
            _ => None,
        }
    }

    /// The family that a `config.json`'s `model_type` names.
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_model_type(name: &str) -> Option<Self> {
        [Self::Llama, Self::BitNet].into_iter().find(|architecture| architecture.name() == name)
    }
}

impl Activation {
    /// Its name in a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::SquaredRelu => "relu2",
        }
    }
}
