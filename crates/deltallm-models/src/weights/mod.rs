//! A model's weights: an open [`file`](ModelFile), and its tensors as the linear maps and norms of the graph.

mod file;
mod half;
mod layers;
mod matrix;
mod quantised;
mod rows;
mod ternary;

pub use file::ModelFile;
pub use layers::{LayerWeights, ModelWeights};
