//! Options that several commands share, and which of them go together.

mod common;
mod kernel;
mod memory;
mod model;
mod numbers;
mod rules;
mod sampling;

pub(crate) use common::Baseline;
pub use common::{CommonArgs, interrupted, main_with, stop_on_ctrl_c};
pub use kernel::{KernelArgs, MarginChoice};
pub(crate) use kernel::{parse_precision, parse_store};
pub use memory::{LimitPolicy, MemoryArgs, MemoryLimit};
pub use model::{LinearKind, ModelArgs};
pub(crate) use numbers::{MOST, whole};
pub(crate) use sampling::SamplingArgs;
