//! The decoder: a [`batch`] of sequences goes through the [`graph`] (tokens in, logits out) and its [`layers`]; beside them the memory of a
//! call, its [`threads`] and the [`checksum`] of the weights.

mod batch;
mod buffer;
mod checksum;
mod graph;
mod layers;
mod threads;
mod workspace;

pub use batch::{AttentionInput, LogitRows, Sequence};
pub use graph::Model;
