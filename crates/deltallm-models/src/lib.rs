//! Language models of the Llama kind (Llama, Mistral, Qwen, SmolLM, Gemma, BitNet) over pluggable attention kernels: file formats, tokenizer, chat templates and sampling.
//!
//! A prompt, continued with hybrid attention:
//!
//! ```
//! use deltallm_attn::KernelSpec;
//! use deltallm_models::{Model, ModelFile, Sampler, SamplerConfig, Session, Tokenizer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let path = "../deltallm-cli/assets/fairy-tales.gguf";
//! let file = ModelFile::open(path)?; // a GGUF file, or a directory with safetensors files
//! let tokenizer = Tokenizer::from_model(&file)?;
//! let model = Model::load(&file)?;
//! let mut session = Session::with_spec(model, &KernelSpec::default())?;
//!
//! let logits = session.prefill(&tokenizer.encode_beginning("Once upon a time there was")?)?;
//! let mut sampler = Sampler::new(SamplerConfig::default())?; // always the most probable token
//! for generated in session.generate(logits, &tokenizer, &mut sampler).take(20) {
//!     print!("{}", generated?.text);
//! }
//! println!("\n{} bytes of cache", session.footprint().total());
//! # Ok(())
//! # }
//! ```
//!
//! In reading order: [`ModelFile`] opens a file or directory, [`Model`] holds its weights, [`Session`] reads a prompt with an
//! [`AttentionKernel`](deltallm_attn::AttentionKernel) per layer, [`Generation`] continues it; [`Tokenizer`], [`ChatTemplate`]
//! and [`Sampler`] are beside them. Arrays are those of [`ndarray`], numbers of 16 bits those of [`half`]; both are re-exported.
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
mod generation;
mod linear;
mod model;
mod session;
mod text;
mod weights;

pub use deltallm_simd::dot::ByteKernel;
pub use error::ModelError;
pub use files::config::{
    Activation, Architecture, ConfigError, LayerSet, ModelConfig, RopeConfig, RopeScaling,
};
#[cfg(feature = "gguf")]
pub use files::gguf;
pub use files::mmap::Bytes;
pub use files::names::{LayerTensor, TensorId};
pub use files::quant;
#[cfg(feature = "safetensors")]
pub use files::safetensors::SafetensorsModel;
pub use generation::{Generated, Generation, GenerationError, StopReason};
pub use half;
pub use linear::error::LinearError;
pub use linear::half::HalfLinear;
pub use linear::matrix::Matrix;
pub use linear::quantised::{QuantisedError, QuantisedLinear};
pub use linear::ternary::{TernaryError, TernaryLinear};
pub use linear::{Linear, LinearForm};
pub use model::{AttentionInput, LogitRows, Model, Sequence};
pub use ndarray;
pub use session::{Narrowed, PrefixStore, PromptCache, PromptLookup, Prompted, Session, SpeculationStats};
pub use text::chat::{ChatError, ChatMessage, ChatTemplate};
pub use text::sampling::{Sampler, SamplerConfig, SamplingError};
pub use text::tokenizer::{GgufVocabulary, StreamDecoder, Tokenizer, TokenizerError};
pub use weights::{LayerWeights, ModelFile, ModelWeights};
