//! Shared parts of the example programs.
//!
//! - [`KernelArgs`]: the attention settings of every program, and the kernels they stand for.
//! - [`MemoryArgs`]: bytes for the caches, and what to do when they are used up.
//! - [`ModelArgs`], [`LoadedModel`]: a model with its tokenizer, from a file or one that is embedded here.
//! - [`generate`], [`Perplexity`]: what the programs of those names do, apart from printing.
//! - [`report`]: the pictures of the program of that name; [`pictures`]: those of the documentation.
//! - [`Setup`], [`read_dataset`], [`Summary`]: the tasks of `evaluate`.
//! - [`Engine`], [`EmbedArgs`]: other engines, with our attention in them and without.
//! - [`CommonArgs`], [`main_with`]: threads and JSON, and how a program ends.

mod calibration;
mod common;
mod digest;
mod drawing;
mod engines;
mod generation;
mod held_out;
mod json;
mod kernel_args;
mod kernel_choice;
mod memory;
mod memory_limit;
mod model;
mod one_by_one;
mod output;
mod perplexity;
pub mod pictures;
mod prefill_only;
mod profile;
mod progress;
pub mod report;
mod skip_margins;
mod tasks;
mod threads;

pub use calibration::{Calibration, Measurements, Request, SkipSearch};
pub use common::{CommonArgs, interrupted, main_with, stop_on_ctrl_c};
pub use deltallm::KernelKind;
pub use digest::sha256_hex;
#[cfg(feature = "candle")]
pub use engines::Candle;
pub use engines::{
    EmbedArgs, Engine, EngineRow, GreedyText, Original, TimingArgs, continue_greedily, most_probable,
    time_engines,
};
pub use generation::{Generation, Stop, first_difference, generate};
pub use held_out::{HeldOutText, MakeKernel, Measured};
pub use json::print_json;
pub use kernel_args::{KernelArgs, Phases};
pub use kernel_choice::{KernelChoice, KernelSettings};
pub use memory::{dense_f16_bytes, format_bytes, peak_rss_bytes};
pub use memory_limit::{LimitPolicy, MemoryArgs, MemoryLimit};
pub use model::{LinearKind, LoadedModel, ModelArgs, read_text};
pub use one_by_one::OneByOne;
pub use output::write_whole;
pub use perplexity::{Comparison, Perplexity, TokenScore, score_rows, windows};
pub use prefill_only::PrefillOnly;
pub use profile::ModelProfile;
pub use progress::Progress;
pub use skip_margins::describe_margins;
pub use tasks::*;
pub use threads::{restart_with, restart_with_weights};
