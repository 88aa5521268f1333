//! What the tests and benchmarks of several crates share. Depends on none of them, so that all can use it.

mod random;
mod snapshots;

pub use random::{Random, numbers};
pub use snapshots::{parts, snapshot};
