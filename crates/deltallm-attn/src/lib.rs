//! Attention kernels for CPU inference engines, each together with its key-value cache.
//!
//! - [`AttentionKernel`]: the interface a model calls, one object per layer.
//! - [`DenseAttention`]: exact; [`DeltaAttention`]: delta-coded keys; [`HybridAttention`]: exact window and sinks,
//!   delta-coded history, value skipping.
//! - [`KernelSpec`]: settings of all layers of a model, from JSON or a command line, and the kernels made from them.
//! - [`attend_dense`], [`attend_hybrid`]: the same for engines that keep their own cache.
//! - [`mod@reference`]: the method in plain f64 loops, with the equations of `docs/method.md`. Start there.
//!
//! One call runs, in reading order, through `forward` (checks, tiles, threads), `tile` (flash-style loop over key
//! blocks) and `simd` (the micro-kernels, for scalar, AVX2, AVX-512 and NEON, chosen at run time). A call of one token goes
//! through `decode` and `simd::decode` instead.
//!
//! Keys and values that are NaN, infinite or too large for the cache's element type are an error, and so are finite
//! inputs whose scores leave the range of f32; the cache then holds what it held before.
//!
//! # Features
//!
//! | feature | by default | what |
//! |---|---|---|
//! | `rayon` | off | tiles and kv heads are shared among the threads of the current rayon pool where [`AttentionOptions::parallel`] says so; any number of threads gives the same bits |
//! | `serde` | off | the JSON form of [`KernelSpec`], [`AttentionProfile`] and their parts, and `deltallm-core`'s `serde` |
#![deny(unsafe_code)] // allowed in single modules of `simd` only
#![cfg_attr(docsrs, feature(doc_cfg))]

mod aligned;
mod cache;
pub mod calibration;
mod decode;
mod delta;
mod dense;
mod error;
mod forward;
mod hybrid;
#[cfg(feature = "serde")]
mod json;
mod kernel;
mod options;
mod prepare;
mod profile;
pub mod reference;
mod shape;
mod simd;
mod skip;
mod spec;
mod tile;
mod view;
mod window;

pub use delta::DeltaAttention;
pub use deltallm_core::{AtLimit, KvStore, MemoryBudget, SparsityStats, ThresholdPolicy};
pub use deltallm_simd::{Isa, IsaError};
pub use dense::{DenseAttention, attend_dense};
pub use error::{AttentionError, SpecError};
pub use hybrid::{HybridAttention, HybridConfig, PaperRule, attend_hybrid};
pub use kernel::{AttentionKernel, KernelWrapper};
pub use options::{AttentionOptions, Precision};
pub use profile::{AttentionProfile, CalibrationGoal, HeldOut, Provenance};
pub use shape::AttentionShape;
pub use skip::SkipMargin;
pub use spec::{KernelContext, KernelKind, KernelSpec, LayerSpec, SpecOverrides};
pub use tile::query_tile;
pub use view::{HeadsView, HeadsViewMut};
pub use window::Window;
