//! The decoder: [`graph`] (tokens in, logits out), the [`layers`] that it goes through, and the memory of a call.

mod buffer;
mod graph;
mod layers;
mod spinning_threads;
mod workspace;

pub use graph::{AttentionInput, LogitRows, Model, Sequence};
