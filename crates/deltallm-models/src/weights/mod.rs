//! A model's weights: an open [`file`](ModelFile), and its tensors as the linear maps and norms of the graph.

mod completeness;
mod file;
mod forms;
mod half;
mod layers;
mod quantised;
mod read;
mod ternary;

pub use file::ModelFile;
pub use layers::{LayerWeights, ModelWeights};
