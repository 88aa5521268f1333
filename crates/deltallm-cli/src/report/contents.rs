//! What a report consists of.

use serde::Serialize;

use super::{accuracy::Accuracy, bytes::Bytes, pairs::Pairs, sparsity::Sparsity, time::Times};
use crate::KernelSettings;

/// The numbers behind all pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Name of the text.
    pub text: String,
    /// Tokens in a window.
    pub context: usize,
    /// Windows that accuracy is measured on.
    pub windows: usize,
    /// Worker threads.
    pub threads: usize,
    /// The hybrid kernel.
    pub settings: KernelSettings,
    /// `sparsity.png`.
    pub sparsity: Sparsity,
    /// `accuracy.png`.
    pub accuracy: Accuracy,
    /// `bytes.png`.
    pub bytes: Bytes,
    /// `time.png`.
    pub time: Times,
    /// `pairs.png`.
    pub pairs: Pairs,
}

/// A drawn picture.
pub struct Picture {
    /// Name of its file.
    pub file: &'static str,
    /// What is to be seen, in one line.
    pub summary: String,
    /// The file's contents, of [`PICTURE_SIZE`](super::PICTURE_SIZE).
    pub png: Vec<u8>,
}
