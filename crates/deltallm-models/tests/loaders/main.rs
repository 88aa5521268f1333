//! The loaders: GGUF and safetensors files, tensor types, parameters and weights.
#![cfg(all(feature = "gguf", feature = "safetensors"))]

#[path = "../common/mod.rs"]
mod common;

mod biases;
mod completeness;
mod config;
mod directories;
mod families;
mod fuzz_seeds;
mod gguf_properties;
mod quantised;
mod quants;
mod real_model;
mod rope;
mod split;
mod token_ids;
mod weights;
