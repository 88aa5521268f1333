//! The families of models, which differ from each other in a few places of one graph.

/// A family of models. All are decoders with RMSNorm, rotary positions, grouped-query attention and a gated MLP; the
/// methods say where they differ, and fields of [`ModelConfig`](crate::ModelConfig) what a file can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama (Touvron et al., arXiv 2302.13971; grouped-query attention as in Llama 2 and 3).
    Llama,
    /// BitNet b1.58 (Ma et al., arXiv 2402.17764; the 2B4T model, arXiv 2504.12285).
    BitNet,
    /// Mistral (Jiang et al., arXiv 2310.06825): Llama whose attention may have a window. GGUF files call it `llama`.
    Mistral,
    /// Qwen 2 and 2.5 (arXiv 2407.10671, 2412.15115): Llama with biases on q, k and v.
    Qwen2,
    /// Qwen 3 (arXiv 2505.09388): Llama with a norm on each head of q and k.
    Qwen3,
    /// SmolLM3: Llama of which some layers rotate nothing.
    SmolLM3,
    /// Gemma 3, text (arXiv 2503.19786): norms on heads and behind each part of a layer, local and global layers.
    Gemma3,
}

/// What the gate of the MLP goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)^2`.
    SquaredRelu,
    /// GELU in its tanh form, `x * (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
}

impl Architecture {
    /// Its name, as a `config.json` of the family has it in `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::BitNet => "bitnet",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLM3 => "smollm3",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// Its name, as fingerprints begin with it. GGUF files do not tell Mistral from Llama.
    pub(crate) fn fingerprint_name(self) -> &'static str {
        if self == Self::Mistral { Self::Llama.name() } else { self.name() }
    }

    /// The activation of the MLP. GGUF files do not say it.
    pub fn activation(self) -> Activation {
        match self {
            Self::BitNet => Activation::SquaredRelu,
            Self::Gemma3 => Activation::GeluTanh,
            _ => Activation::Silu,
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

    /// Whether each head of queries and keys goes through a norm before it is rotated.
    pub fn has_head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether what attention and MLP add to the residual stream goes through a norm before.
    pub fn has_post_norms(self) -> bool {
        self == Self::Gemma3
    }

    /// Whether embeddings are multiplied with the square root of their length. `transformers` rounds it to the type that it
    /// computes in, and so does this crate, which computes in f32.
    pub fn scales_embeddings(self) -> bool {
        self == Self::Gemma3
    }

    /// Whether safetensors files hold the weights of norms less 1. GGUF files hold them whole.
    pub(crate) fn stores_norms_less_one(self) -> bool {
        self == Self::Gemma3
    }

    /// Whether GGUF files hold the rows of queries and keys in interleaved RoPE order.
    pub(crate) fn is_interleaved_in_gguf(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral | Self::SmolLM3)
    }

    /// Whether its class in `transformers` knows windows.
    #[cfg(feature = "safetensors")]
    pub(crate) fn has_windows(self) -> bool {
        self.lists_windows() || self == Self::Mistral
    }

    /// Whether a `config.json` must say that windows are on.
    #[cfg(feature = "safetensors")]
    pub(crate) fn windows_are_switched_on(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3 | Self::SmolLM3)
    }

    /// Whether the layers with a window are those that a `config.json` lists.
    #[cfg(feature = "safetensors")]
    pub(crate) fn lists_windows(self) -> bool {
        self.windows_are_switched_on() || self == Self::Gemma3
    }

    /// The family that a GGUF file's `general.architecture` names.
    #[cfg(feature = "gguf")]
    pub(crate) fn from_gguf_name(name: &str) -> Option<Self> {
        match name {
            "llama" => Some(Self::Llama),
            // The second is what the published 2B4T file says, the third what an early converter said.
            "bitnet" | "bitnet-b1.58" | "bitnet-25" => Some(Self::BitNet),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "smollm3" => Some(Self::SmolLM3),
            "gemma3" => Some(Self::Gemma3),
            _ => None,
        }
    }

    /// What [`from_gguf_name`](Self::from_gguf_name) knows, for messages.
    #[cfg(feature = "gguf")]
    pub(crate) const GGUF_NAMES: &str =
        "`llama`, `bitnet`, `bitnet-b1.58`, `bitnet-25`, `qwen2`, `qwen3`, `smollm3` and `gemma3`";

    /// The family that a `config.json`'s `model_type` names.
    #[cfg(feature = "safetensors")]
    pub(crate) fn from_model_type(name: &str) -> Option<Self> {
        const ALL: [Architecture; 7] = [
            Architecture::Llama,
            Architecture::BitNet,
            Architecture::Mistral,
            Architecture::Qwen2,
            Architecture::Qwen3,
            Architecture::SmolLM3,
            Architecture::Gemma3,
        ];
        ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// What [`from_model_type`](Self::from_model_type) knows, for messages.
    #[cfg(feature = "safetensors")]
    pub(crate) const MODEL_TYPES: &str =
        "`llama`, `bitnet`, `mistral`, `qwen2`, `qwen3`, `smollm3`, `gemma3_text` and `gemma3`";
}

impl Activation {
    /// Its name in a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::SquaredRelu => "relu2",
            Self::GeluTanh => "gelu_pytorch_tanh",
        }
    }
}
