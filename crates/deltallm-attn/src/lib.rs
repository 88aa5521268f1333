//! Attention kernels for CPU inference engines, each together with its key-value cache.
//!
//! - [`AttentionKernel`]: the interface a model calls, one object per layer.
//! - [`DenseAttention`]: exact; [`DeltaAttention`]: delta-coded keys; [`HybridAttention`]: exact window and sinks,
//!   delta-coded history, value skipping.
//! - [`KernelSpec`]: settings of all layers of a model, from JSON or a command line, and the kernels made from them.
//! - [`attend_dense`], [`attend_hybrid`]: the same for engines that keep their own cache.
//! - [`mod@reference`]: the method in plain f64 loops, with the equations of `docs/method.md`. Start there.
//!
//! In reading order: a call of more than one token goes through `prefill` (tiles, keys and values in the form that tiles read,
//! micro-kernels), one of a single token through `decode`; both see the cache as `segment`s. Instruction sets are those of
//! [`Isa`], chosen at run time.
//!
//! Keys and values that are NaN, infinite or too large for the cache's element type are an error, and so are finite
//! inputs whose scores leave the range of f32; the cache then holds what it held before.
//!
//! # Features
//!
//! | feature | by default | what |
//! |---|---|---|
//! | `ndarray` | on | [`AttentionKernel::forward`] for arrays, [`mod@calibration`], and the crate `ndarray` re-exported |
//! | `rayon` | off | tiles and kv heads are shared among the threads of the current rayon pool where [`AttentionOptions::parallel`] says so; any number of threads gives the same bits |
//! | `serde` | off | the JSON form of [`KernelSpec`], [`AttentionProfile`] and their parts, and `deltallm-core`'s `serde` |
#![deny(unsafe_code)] // allowed in single modules of `arch` only
#![warn(missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attend;
#[cfg(feature = "ndarray")]
pub mod calibration;
mod decode;
mod dense;
mod error;
mod forward;
mod heads;
mod hybrid;
#[cfg(feature = "serde")]
mod json;
mod kernel;
mod mask;
mod options;
mod output;
mod precision;
mod prefill;
mod profile;
mod ranges;
pub mod reference;
mod saved;
mod segment;
mod shape;
mod skip;
mod softcap;
mod spec;
mod view;
mod window;

pub use deltallm_core::{AtLimit, KvStore, MemoryBudget, SparsityStats, ThresholdPolicy};
pub use deltallm_simd::{Isa, IsaError};
pub use dense::{DenseAttention, attend_dense};
pub use error::{AttentionError, SpecError};
pub use forward::{Half, forward_batch, forward_half, forward_one_by_one};
pub use hybrid::{HybridAttention, HybridConfig, PaperRule, attend_hybrid, delta::DeltaAttention};
pub use kernel::{AttentionKernel, KernelWrapper};
pub use mask::Mask;
#[cfg(feature = "ndarray")]
pub use ndarray;
pub use options::AttentionOptions;
pub use precision::Precision;
pub use prefill::QUERY_TILE;
pub use profile::{AttentionProfile, CalibrationGoal, HeldOut, Provenance, Verified};
pub use shape::AttentionShape;
pub use skip::SkipMargin;
pub use spec::{KernelContext, KernelKind, KernelSpec, LayerSpec, SpecOverrides};
pub use view::{HeadsView, HeadsViewMut};
pub use window::ExactWindow;
