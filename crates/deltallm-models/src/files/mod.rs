//! What is read from disk: file formats, the types of tensors and their names, and a model's parameters.

pub(crate) mod config;
#[cfg(feature = "gguf")]
pub mod gguf;
#[cfg(feature = "gguf")]
pub(crate) mod gguf_model;
pub(crate) mod json;
pub(crate) mod mmap;
pub(crate) mod names;
pub mod quant;
#[cfg(feature = "safetensors")]
pub(crate) mod safetensors;
#[cfg(feature = "safetensors")]
pub(crate) mod sees_images;
