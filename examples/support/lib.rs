//! Shared parts of the example programs.
//!
//! - [`KernelArgs`]: the attention settings of every program, and the kernels they stand for.
//! - [`LoadedModel`]: a model with its tokenizer, from a file or the one that is embedded here.
//! - [`generate`], [`Perplexity`]: what the programs of those names do, apart from printing.
//! - [`Setup`], [`read_dataset`], [`Summary`]: the tasks of `evaluate`.
//! - [`CommonArgs`], [`main_with`]: threads and JSON, and how a program ends.

mod common;
mod generation;
mod json;
mod kernel_args;
mod memory;
mod model;
mod perplexity;
mod prefill_only;
mod progress;
mod tasks;

pub use common::{CommonArgs, interrupted, main_with, stop_on_ctrl_c};
pub use generation::{Generation, Stop, first_difference, generate};
pub use json::print_json;
pub use kernel_args::{KernelArgs, KernelChoice, KernelKind, KernelSettings, Phases};
pub use memory::{dense_f16_bytes, format_bytes, peak_rss_bytes};
pub use model::LoadedModel;
pub use perplexity::{Comparison, Perplexity, TokenScore, score_rows, windows};
pub use prefill_only::PrefillOnly;
pub use progress::Progress;
pub use tasks::*;
