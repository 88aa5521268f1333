//! What the benchmarks and the programs `ratios` and `bench-model` are made of.
//!
//! - [`inputs`]: queries, keys and values, captured from a model or synthetic, and the settings that go with them.
//! - [`variants`]: the table of our kernels; [`ours`] runs them.
//! - [`peers`]: other engines, run in the same way.
//! - [`measure()`]: interleaved rounds of all of them; [`timing`]: medians.
//! - [`peak`]: what the machine can do at most.
//! - [`report`]: rows for the table and for JSON; [`table`] prints them.
//! - [`args`], [`settings`]: the command line of `ratios`; [`subject`]: what takes part in its rounds.
//!
//! `bench-model` times whole models: the rounds of `deltallm bench`, with candle among those who take part.

pub mod args;
pub mod inputs;
pub mod measure;
pub mod ours;
pub mod peak;
pub mod peers;
pub mod report;
pub mod settings;
pub mod subject;
pub mod table;
pub mod variants;

#[path = "../../examples/engines/threads.rs"]
mod threads;

pub use deltallm_cli::bench::{machine, timing};
pub use inputs::{Inputs, Layer};
pub use measure::measure;

/// Runs this program again with the variables that candle takes its number of threads from, unless they are right already.
///
/// # Errors
/// When the program cannot be started again.
pub fn restart_with(threads: u16) -> anyhow::Result<()> {
    threads::restart_with(Some(threads), None)
}
