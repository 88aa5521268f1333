//! The kernels that the settings of a program stand for, and those that it puts around others.

mod choice;
mod margins;
mod one_by_one;
mod open_step;
mod phases;
mod prefill_only;
mod timed;

pub use choice::{KernelChoice, KernelSettings};
pub use margins::describe_margins;
pub use one_by_one::OneByOne;
pub(crate) use open_step::OpenStep;
pub use phases::Phases;
pub use prefill_only::PrefillOnly;
pub use timed::{AttentionTime, Timed};
