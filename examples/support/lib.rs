//! Shared parts of the example programs.
//!
//! - [`KernelArgs`]: the attention settings of every program, and the kernels they stand for.
//! - [`LoadedModel`]: a model with its tokenizer, from a file or the one that is embedded here.
//! - [`generate`], [`Perplexity`]: what the programs of those names do, apart from printing.
//! - [`report`]: the pictures of the program of that name.
//! - [`CommonArgs`], [`main_with`]: threads and JSON, and how a program ends.

mod calibration;
mod common;
mod generation;
mod held_out;
mod json;
mod kernel_args;
mod kernel_choice;
mod memory;
mod model;
mod output;
mod perplexity;
mod profile;
mod progress;
pub mod report;

pub use calibration::{Calibration, Goal, Measurements, RULES, Request};
pub use common::{CommonArgs, interrupted, main_with, stop_on_ctrl_c};
pub use generation::{Generation, Stop, first_difference, generate};
pub use held_out::{HeldOutText, MakeKernel, Measured};
pub use json::print_json;
pub use kernel_args::{KernelArgs, KernelKind};
pub use kernel_choice::{KernelChoice, KernelSettings};
pub use memory::{dense_f16_bytes, format_bytes, peak_rss_bytes};
pub use model::{LoadedModel, read_text};
pub use output::write_whole;
pub use perplexity::{Comparison, Perplexity, TokenScore, score_rows, windows};
pub use profile::ModelProfile;
pub use progress::Progress;
