//! Whole models: prompts and generated tokens, ours and candle's, on the same GGUF file and the same tokens.
//!
//! - [`engine`]: what is timed, and how it is named.
//! - [`ours`], [`candle`]: who takes part.
//! - [`text`]: the tokens.
//! - [`rounds`]: interleaved rounds of all of them.
//! - [`report`]: rows for the table and for JSON.

pub mod args;
pub mod candle;
pub mod engine;
pub mod ours;
pub mod report;
pub mod rounds;
pub mod text;
