//! What `transformers` has for a family: its class, and what it assumes for entries that are absent.

use super::Architecture;

/// Of one family.
pub(super) struct Defaults {
    /// The model's class.
    pub(super) class: &'static str,
    pub(super) norm_eps: f32,
    pub(super) theta: f32,
    pub(super) context_length: u64,
    /// Query heads and rows of the embedding; `None` where the file must say them.
    pub(super) heads: Option<u64>,
    pub(super) vocab_size: Option<u64>,
    /// Key and value heads where there is no entry; `None` for as many as there are query heads.
    pub(super) kv_heads: Option<u64>,
    /// Channels of a head; `None` for the hidden size over the heads.
    pub(super) head_dim: Option<u64>,
    pub(super) tie_embeddings: bool,
    /// The window where there is no entry.
    pub(super) window: Option<u64>,
}

impl Defaults {
    pub(super) fn of(architecture: Architecture) -> Self {
        let llama = Self {
            class: "LlamaForCausalLM",
            norm_eps: 1e-6,
            theta: 10_000.0,
            context_length: 2048,
            heads: None,
            vocab_size: None,
            kv_heads: None,
            head_dim: None,
            tie_embeddings: false,
            window: None,
        };
        match architecture {
            Architecture::Llama => llama,
            Architecture::BitNet => {
                Self { class: "BitNetForCausalLM", norm_eps: 1e-5, theta: 500_000.0, ..llama }
            }
            Architecture::Mistral => Self {
                class: "MistralForCausalLM",
                context_length: 131_072,
                kv_heads: Some(8),
                window: Some(4096),
                ..llama
            },
            Architecture::Qwen2 => Self {
                class: "Qwen2ForCausalLM",
                context_length: 32_768,
                kv_heads: Some(32),
                window: Some(4096),
                ..llama
            },
            Architecture::Qwen3 => {
                Self { class: "Qwen3ForCausalLM", head_dim: Some(128), ..Self::of(Architecture::Qwen2) }
            }
            Architecture::SmolLM3 => Self {
                class: "SmolLM3ForCausalLM",
                theta: 2_000_000.0,
                context_length: 32_768,
                kv_heads: Some(4),
                tie_embeddings: true,
                ..llama
            },
            Architecture::Gemma3 => Self {
                class: "Gemma3ForCausalLM",
                theta: 1_000_000.0,
                context_length: 131_072,
                heads: Some(8),
                vocab_size: Some(262_208),
                kv_heads: Some(4),
                head_dim: Some(256),
                tie_embeddings: true,
                window: Some(4096),
                ..llama
            },
        }
    }
}
