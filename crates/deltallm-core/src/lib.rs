//! Delta coding of attention keys, threshold policy and key-value memory accounting.
//!
//! The method is DeltaLLM's (arXiv 2507.19608): along the token axis a key channel is stored only when it has moved
//! by more than a threshold since it was last stored. In reading order:
//!
//! 1. [`DeltaEncoder`]: the element rule, one key at a time, with the reconstruction and its bound.
//! 2. [`DeltaMatrix`]: the coded keys of one kv head, in blocks that can be entered anywhere.
//! 3. [`ThresholdPolicy`]: which threshold each layer, kv head and channel gets: one for all, calibrated ones
//!    ([`ThresholdProfile`]), or those that meet a zero fraction ([`TargetSparsity`]).
//! 4. [`KvStore`]: how a cache keeps its keys and values; [`ElementType`]: the float types.
//! 5. [`MemoryBudget`], [`Reservation`], [`Footprint`], [`CachePlan`], [`AtLimit`]: bytes, planned before and charged
//!    while running, and what is done when they run out.
//! 6. [`SparsityStats`]: what the coding and the skipping saved.
//!
//! Rows that are not coded, and what kernels read of coded ones, are for `deltallm-attn` alone and not part of this interface.
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
//! | `serde` | off | `Serialize` and `Deserialize` for [`ThresholdPolicy`], [`ModelFingerprint`], [`KvStore`], [`ElementType`], [`Footprint`] and [`SparsityStats`]; what is read is checked, one threshold and a target sparsity when a kernel is made |
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod budget;
mod check;
mod delta;
mod element;
mod error;
mod fingerprint;
mod footprint;
mod kv_store;
mod piece;
mod plan;
mod quantise;
mod quoted;
mod rows;
mod snapshot;
mod stats;
mod threshold;
mod token_store;

pub use budget::{AtLimit, MemoryBudget, Reservation};
pub use delta::{DeltaEncoder, DeltaMatrix};
pub use element::ElementType;
pub use error::CoreError;
pub use fingerprint::ModelFingerprint;
pub use footprint::Footprint;
pub use kv_store::{BLOCK_TOKENS, KvStore};
pub use plan::{CachePlan, KeyPlan};
pub use snapshot::{SnapshotError, SnapshotReader, SnapshotWriter};
pub use stats::{HeadSparsity, SparsityStats};
pub use threshold::{HeadThresholds, TargetSparsity, ThresholdPolicy, ThresholdProfile};

/// For the other crates, no promises: the forms in which keys and values are held, which the kernels of `deltallm-attn` read,
/// how messages show text out of files, and how files are written. They change with any release.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        check::LAYER_CHANNELS,
        delta::{DeltaBlock, DeltaCodes, Escape, FloatCodes, StepCodes, most_key_bytes, whole_keys},
        quoted::{Quoted, message, quoted},
        rows::{FloatRows, GROUP, Int4Rows, Int8Rows, PagedRows, RowFormat, StoredRows},
        snapshot::write_file,
        token_store::{TokenStore, exchange, exchange_all, pay},
    };
}
