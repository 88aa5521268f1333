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

mod error;
mod files;
mod linear;
mod model;
mod session;
mod text;
mod weights;

pub use deltallm_simd::dot::ByteKernel;
pub use error::ModelError;
pub use files::config::{Activation, Architecture, ConfigError, ModelConfig, RopeConfig, RopeScaling};
#[cfg(feature = "gguf")]
pub use files::gguf;
pub use files::mmap::Bytes;
pub use files::names::{LayerTensor, TensorId};
pub use files::quant;
#[cfg(feature = "safetensors")]
pub use files::safetensors::SafetensorsModel;
pub use linear::half::HalfLinear;
pub use linear::matrix::Matrix;
pub use linear::quantised::{QuantisedError, QuantisedLinear};
pub use linear::ternary::{TernaryError, TernaryLinear};
pub use linear::{Linear, LinearForm};
pub use model::{AttentionInput, LogitRows, Model, Sequence};
pub use session::{Narrowed, Session};
pub use text::chat::{ChatError, ChatMessage, ChatTemplate};
pub use text::sampling::{Sampler, SamplerConfig, SamplingError};
pub use text::tokenizer::{GgufVocabulary, StreamDecoder, Tokenizer, TokenizerError};
pub use weights::{LayerWeights, ModelFile, ModelWeights};
