//! What can be wrong with the parts of a split model.

/// Why the parts of a split model do not make a whole one. Parts are counted from 1, as in their names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// The other parts are found by the file's name, and it has another.
    #[error(
        "part {part} of {count} of a model: expected a name that ends in `{expected}`, by which the others are found"
    )]
    Name {
        /// Which part it says it is.
        part: u64,
        /// The parts.
        count: u64,
        /// The end that the name should have.
        expected: String,
    },
    /// A part is not there.
    #[error("part {part} of {count} of a model is missing: expected it beside the others")]
    Missing {
        /// Which part.
        part: u64,
        /// The parts.
        count: u64,
    },
    /// A part does not say what it should, so it may be of another model.
    #[error(
        "part {part} of a model: expected `{key}` to be {expected}, got {got}: the parts do not belong together"
    )]
    Differs {
        /// Which part.
        part: u64,
        /// The metadata.
        key: String,
        /// What it should say.
        expected: String,
        /// What it says.
        got: String,
    },
    /// The parts together have another number of tensors than they say.
    #[error("expected {expected} tensors in all parts of the model together, got {got}")]
    Tensors {
        /// What they say.
        expected: u64,
        /// Their number.
        got: u64,
    },
    /// Two parts have a tensor of the same name.
    #[error("expected tensor `{tensor}` in one part of the model, got it in two")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// A part in memory, where the others cannot be found.
    #[error(
        "expected a whole model, got part {part} of {count}: open it by its path, with the others beside it"
    )]
    Alone {
        /// Which part.
        part: u64,
        /// The parts.
        count: u64,
    },
}
