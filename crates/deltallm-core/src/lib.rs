//! Delta coding of attention keys, threshold policy and key-value memory accounting.
//!
//! The method is DeltaLLM's (arXiv 2507.19608): along the token axis a key channel is stored only when it has moved
//! by more than a threshold since it was last stored. In reading order:
//!
//! 1. [`DeltaEncoder`]: the element rule, one key at a time, with the reconstruction and its bound.
//! 2. [`DeltaMatrix`]: the coded keys of one kv head, in blocks that can be entered anywhere.
//! 3. [`ThresholdPolicy`]: which threshold each layer, kv head and channel gets: one for all, calibrated ones
//!    ([`ThresholdProfile`]), or those that meet a zero fraction ([`TargetSparsity`]).
//! 4. [`KvStore`]: how a cache keeps its keys and values; [`PagedRows`] and [`ElementType`]: uncoded rows.
//! 5. [`MemoryBudget`], [`Footprint`], [`CachePlan`], [`AtLimit`]: bytes, planned before and charged while running, and
//!    what is done when they run out.
//! 6. [`SparsityStats`]: what the coding and the skipping saved.
//!
//! ```
//! use deltallm_core::{DeltaEncoder, ElementType};
//!
//! let mut encoder = DeltaEncoder::new(vec![0.5, 0.5], ElementType::F32)?;
//! encoder.encode(&[1.0, -1.0])?; // the first key is transmitted whole
//! let sent = encoder.encode(&[1.4, 0.0])?; // channel 0 moved by 0.4 only
//! assert_eq!(sent, [0b10]); // a bit for each channel
//! assert_eq!(encoder.reconstruction(), [1.0, 0.0]);
//! # Ok::<(), deltallm_core::CoreError>(())
//! ```
//!
//! # Features
//!
//! | feature | by default | what |
//! |---|---|---|
//! | `serde` | off | `Serialize` and `Deserialize` for [`ThresholdPolicy`], [`ModelFingerprint`], [`KvStore`], [`ElementType`], [`Footprint`] and [`SparsityStats`]; what is read is checked |
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod block;
mod budget;
mod coding;
mod differences;
mod elements;
mod encoder;
mod error;
mod footprint;
mod matrix;
#[cfg(feature = "serde")]
mod policy_json;
mod profile;
mod quantise;
mod rows;
mod stats;
mod store;
mod target;
mod threshold;

pub use block::{BlockCodes, DeltaBlock, Escape};
pub use budget::{AtLimit, Charge, MemoryBudget};
pub use elements::ElementType;
pub use encoder::DeltaEncoder;
pub use error::CoreError;
pub use footprint::{CachePlan, Footprint, KeyPlan};
pub use matrix::DeltaMatrix;
pub use profile::{ModelFingerprint, ThresholdProfile};
pub use quantise::GROUP;
pub use rows::{PagedRows, RowFormat, RowsPage};
pub use stats::{HeadSparsity, SparsityStats};
pub use store::KvStore;
pub use target::TargetSparsity;
pub use threshold::{HeadThresholds, ThresholdPolicy};

/// Tokens in one block of the cache: a page of rows, and the distance between two key frames of a delta matrix.
pub const BLOCK_TOKENS: usize = 64;
