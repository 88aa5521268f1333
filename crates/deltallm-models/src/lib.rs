//! Llama and BitNet models over pluggable attention kernels: file formats, tokenizer, chat templates and sampling.
//!
//! In reading order: [`ModelFile`] opens a file or directory, [`Model`] holds its weights, [`Session`] reads a prompt and
//! continues it with an [`AttentionKernel`](deltallm_attn::AttentionKernel) per layer; [`Tokenizer`], [`ChatTemplate`] and
//! [`Sampler`] are beside them.
//!
//! # Features
//!
//! At least one file format is needed.
//!
//! | feature | by default | what |
//! |---|---|---|
//! | `gguf` | on | GGUF files, with the tokenizer that they carry |
//! | `safetensors` | on | directories with `config.json` and safetensors files |
#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod chat;
mod config;
mod error;
#[cfg(feature = "gguf")]
pub mod gguf;
mod halves;
mod inputs;
mod json;
mod kernels;
mod layers;
mod mmap;
mod model;
pub mod quant;
mod quantised;
#[cfg(feature = "safetensors")]
mod safetensors;
mod sampling;
mod session;
mod ternary;
mod tokenizer;
mod weights;
mod workspace;

pub use chat::{ChatError, ChatMessage, ChatTemplate};
pub use config::{Activation, Architecture, ConfigError, ModelConfig, RopeConfig, RopeScaling};
pub use deltallm_simd::dot::ByteKernel;
pub use error::ModelError;
pub use halves::HalfLinear;
pub use mmap::Bytes;
pub use model::{AttentionInput, LogitRows, Model, Sequence};
pub use quantised::{QuantisedError, QuantisedLinear};
#[cfg(feature = "safetensors")]
pub use safetensors::SafetensorsModel;
pub use sampling::{Sampler, SamplerConfig, SamplingError};
pub use session::{Narrowed, Session};
pub use ternary::{TernaryError, TernaryLinear};
pub use tokenizer::{GgufVocabulary, StreamDecoder, Tokenizer, TokenizerError};
pub use weights::{LayerTensor, LayerWeights, Linear, LinearForm, Matrix, ModelFile, ModelWeights, TensorId};
