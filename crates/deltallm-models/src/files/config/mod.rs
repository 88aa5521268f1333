//! The parameters of a model, read from GGUF metadata or from a `config.json`.

mod architecture;
mod error;
#[cfg(feature = "gguf")]
mod from_gguf;
#[cfg(feature = "safetensors")]
mod from_json;
#[cfg(feature = "gguf")]
mod gguf_parameters;
#[cfg(feature = "safetensors")]
mod irrelevant_fields;
#[cfg(feature = "safetensors")]
mod json_defaults;
#[cfg(feature = "safetensors")]
mod json_fields;
#[cfg(feature = "safetensors")]
mod json_layers;
#[cfg(feature = "safetensors")]
mod json_rope;
mod layer_set;
mod model_config;
#[cfg(feature = "safetensors")]
mod quantization;
mod rope;
mod sizes;

pub use architecture::{Activation, Architecture};
pub use error::ConfigError;
pub use layer_set::LayerSet;
pub use model_config::ModelConfig;
#[cfg(feature = "safetensors")]
pub(crate) use quantization::Quantization;
pub use rope::{RopeConfig, RopeScaling};
