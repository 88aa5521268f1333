//! What a task came to.

use deltallm::core::HeadSparsity;
use serde_json::{Map, Value};

/// What a task came to.
pub(super) struct Scores {
    pub(super) examples: usize,
    pub(super) tokens: usize,
    /// For programs: what differs from task to task.
    pub(super) fields: Map<String, Value>,
    /// For people.
    pub(super) lines: Vec<String>,
    pub(super) sparsity: HeadSparsity,
    /// What came of prompts; the rest came of generated tokens, or of text attended as such.
    pub(super) prompts: HeadSparsity,
    /// Tokens of the longest text.
    pub(super) longest: usize,
}
