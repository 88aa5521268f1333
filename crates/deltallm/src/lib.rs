//! Delta attention for CPU inference engines, after DeltaLLM (arXiv 2507.19608).
//!
//! Keys are coded as thresholded differences along the token axis; a query sees the keys of a local window exactly and
//! the rest through the differences. Nothing is trained.
//!
//! ```
//! use deltallm::{AttentionKernel, AttentionShape, HybridAttention, HybridConfig, ndarray::Array3};
//!
//! // One object per layer: 9 query heads, 3 kv heads, 64 channels.
//! let shape = AttentionShape::new(9, 3, 64)?;
//! let mut attention = HybridAttention::new(shape, HybridConfig::default())?;
//!
//! // q after RoPE: [tokens, heads, head_dim]; k after RoPE and v: [tokens, kv_heads, head_dim].
//! let (q, k, v) = (Array3::ones((128, 9, 64)), Array3::ones((128, 3, 64)), Array3::ones((128, 3, 64)));
//! let mut out = Array3::zeros((128, 9, 64));
//! attention.forward(q.view(), k.view(), v.view(), out.view_mut())?;
//!
//! println!("{:.0} % zeros, {} bytes", 100.0 * attention.stats().total().zero_fraction(), attention.footprint().total());
//! # Ok::<(), deltallm::AttentionError>(())
//! ```
//!
//! With buffers of one's own, `[tokens, heads, head_dim]`, and without ndarray:
//!
//! ```
//! use deltallm::{AttentionKernel, AttentionShape, HeadsView, HeadsViewMut, HybridAttention, HybridConfig};
//!
//! let (tokens, heads, kv_heads, head_dim) = (128, 9, 3, 64);
//! let (q, k, v) = (vec![0.1; tokens * heads * head_dim], vec![0.2; tokens * kv_heads * head_dim], vec![0.3; tokens * kv_heads * head_dim]);
//! let mut out = vec![0.0; tokens * heads * head_dim];
//!
//! let shape = AttentionShape::new(heads, kv_heads, head_dim)?;
//! let mut attention = HybridAttention::new(shape, HybridConfig::default())?;
//! attention.forward_heads(
//!     HeadsView::new(&q, [tokens, heads, head_dim])?,
//!     HeadsView::new(&k, [tokens, kv_heads, head_dim])?,
//!     HeadsView::new(&v, [tokens, kv_heads, head_dim])?,
//!     HeadsViewMut::new(&mut out, [tokens, heads, head_dim])?,
//! )?;
//! # Ok::<(), deltallm::AttentionError>(())
//! ```
//!
//! Every next token is the same call with one token; the kernel keeps the cache, and `truncate` takes tokens back.
//!
//! What is not said has a default, and what is said is said by name:
//!
//! ```
//! use deltallm::{
//!     AttentionOptions, AttentionShape, HybridAttention, HybridConfig, KvStore, MemoryBudget,
//! };
//!
//! let options = AttentionOptions::default().store(KvStore::Compact).budget(MemoryBudget::new(64 << 20));
//! let config = HybridConfig::default().options(options);
//! let shape = AttentionShape::new(9, 3, 64)?;
//! let layers = (0..4).map(|layer| HybridAttention::new(shape, config.clone().layer(layer)));
//! let layers: Vec<_> = layers.collect::<Result<_, _>>()?;
//! # Ok::<(), deltallm::AttentionError>(())
//! ```
//!
//! - [`core`]: delta coding, thresholds, budgets, statistics.
//! - [`attn`]: the kernels; what an engine needs most is re-exported here.
//! - `calibration` (feature `ndarray`, on by default): finds the settings of a model, in any engine.
//! - `models` (feature `models`): one graph for Llama, Mistral, Qwen, SmolLM, Gemma and BitNet models, loaders, tokenizer and sampling around the kernels.
//!
//! # Features
//!
//! | feature | by default | what |
//! |---|---|---|
//! | `ndarray` | on | `forward` for arrays, `deltallm::ndarray`, and calibration; without it there are slices |
//! | `rayon` | on | attention on several threads |
//! | `serde` | off | profiles, thresholds, statistics and footprints as JSON |
//! | `models` | off | the runtime for language models, `deltallm::models`, with both of its file formats |
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub use deltallm_attn as attn;
#[cfg(feature = "ndarray")]
pub use deltallm_attn::{calibration, ndarray};
pub use deltallm_core as core;
#[cfg(feature = "models")]
pub use deltallm_models as models;

pub use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionProfile, AttentionShape, DeltaAttention,
    DenseAttention, ExactWindow, HeadsView, HeadsViewMut, HybridAttention, HybridConfig, Isa, IsaError,
    KernelContext, KernelKind, KernelSpec, KernelWrapper, LayerSpec, Mask, PaperRule, Precision, SkipMargin,
    SpecError, SpecOverrides, attend_dense, attend_hybrid,
};
pub use deltallm_core::{
    AtLimit, CachePlan, CoreError, ElementType, Footprint, HeadSparsity, KeyPlan, KvStore, MemoryBudget,
    ModelFingerprint, SparsityStats, TargetSparsity, ThresholdPolicy, ThresholdProfile,
};

/// The code of the pages, compiled and run as tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../README.md")]
    struct Repository;

    #[doc = include_str!("../README.md")]
    struct Crate;

    /// Its last step reads a profile.
    #[cfg(feature = "serde")]
    #[doc = include_str!("../../../docs/guide.md")]
    struct Guide;

    #[doc = include_str!("../../../docs/embedding.md")]
    struct Embedding;
}
