//! The program `deltallm`: [`main()`] is all of it.
//!
//! The rest is what its commands are made of, and no interface: it is open to their tests and to the benchmarks, and changes with
//! any release. In reading order:
//!
//! - `commands`: a file for each command, with its options and what it prints.
//! - `args`: options that several commands share; [`KernelArgs`] are the attention settings of all of them.
//! - `kernels`: the kernels that the settings stand for. `model`: a model with its tokenizer, from a file or embedded.
//! - `input`: the texts that are read. `generation`, `tasks`, `measure`, `bench`: what the commands do, apart from printing.
//! - `report`, `pictures`, `drawing`: pictures, and the numbers behind them. `output`: JSON, files, bytes in words.

// Both panic where the stream is closed: see `output`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
#[doc(hidden)]
pub mod bench;
mod commands;
mod drawing;
mod generation;
mod input;
mod kernels;
mod measure;
mod model;
mod output;
#[doc(hidden)]
pub mod pictures;
mod program;
#[doc(hidden)]
pub mod report;
mod tasks;

#[doc(hidden)]
pub use args::{
    CommonArgs, KernelArgs, LimitPolicy, LinearKind, MarginChoice, MemoryArgs, MemoryLimit, ModelArgs,
    interrupted, main_with, stop_on_ctrl_c,
};
#[doc(hidden)]
pub use deltallm::KernelKind;
#[doc(hidden)]
pub use generation::{BudgetRefusal, Generation, Stop, Wanted, first_difference, generate};
#[doc(hidden)]
pub use input::read_text;
#[doc(hidden)]
pub use kernels::{
    AttentionTime, KernelChoice, KernelSettings, OneByOne, Phases, PrefillOnly, Timed, describe_margins,
};
#[doc(hidden)]
pub use measure::{
    Comparison, HeldOutText, MakeKernel, Measured, Perplexity, TokenScore, WindowedText, score_rows,
};
#[doc(hidden)]
pub use model::{LoadedModel, ModelProfile};
pub(crate) use model::{model_file, model_name};
pub(crate) use output::is_closed_stdout;
#[doc(hidden)]
pub use output::{
    Progress, SkippedValues, check_folder, dense_f16_bytes, format_bytes, layer_plan, note, peak_rss_bytes,
    print, print_json, print_line, sha256_hex, write_whole,
};
pub use program::main;
#[doc(hidden)]
pub use tasks::{
    ANSWER_TOKENS, Answer, ChoiceExample, Dataset, Estimate, ExampleResult, ExampleScores, Examples,
    LastWordExample, Lengths, LikelihoodExample, Outcome, Pair, Plan, Question, RequestScore, ResumeLog,
    Resumed, Score, Scored, Scorer, Setup, Shape, Summary, TaskKind, Unscorable, WindowResult, answer_all,
    answer_questions, exact_match, f1, normalise, read_dataset, run_windows, score_examples, score_window,
    sum_windows, take_shots,
};
