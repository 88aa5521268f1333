//! What the benchmarks and the programs `ratios` and `bench-model` are made of.
//!
//! - [`inputs`]: queries, keys and values, captured from a model or synthetic, and the settings that go with them.
//! - [`variants`]: the table of our kernels; [`ours`] runs them.
//! - [`peers`]: other engines, run in the same way.
//! - [`measure()`]: interleaved rounds of all of them; [`timing`]: medians.
//! - [`peak`]: what the machine can do at most.
//! - [`report`]: rows for the table and for JSON.
//! - [`model`]: whole models, ours and candle's.

pub mod args;
pub mod inputs;
pub mod machine;
pub mod measure;
pub mod model;
pub mod ours;
pub mod peak;
pub mod peers;
pub mod report;
pub mod settings;
pub mod subject;
pub mod table;
pub mod timing;
pub mod variants;

pub use inputs::{Inputs, Layer};
pub use measure::measure;
