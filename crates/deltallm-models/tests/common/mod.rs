//! What several test programs share.
#![allow(dead_code, reason = "each program uses some of it")]

#[cfg(all(feature = "gguf", feature = "safetensors"))]
pub(crate) mod bitnet;
pub(crate) mod files;
pub(crate) mod gguf_writer;
pub(crate) mod models;
#[cfg(all(feature = "gguf", feature = "safetensors"))]
pub(crate) mod parameters;
pub(crate) mod published;
#[cfg(feature = "gguf")]
pub(crate) mod sessions;
#[cfg(all(feature = "gguf", feature = "safetensors"))]
pub(crate) mod tiny;
