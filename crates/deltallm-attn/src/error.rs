//! What can go wrong in attention.

use deltallm_core::{CoreError, KvStore};

/// Errors of this crate. Every variant says what was expected and what came; after an error the cache holds what it
/// held before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// A dimension of an input or of a configuration does not fit.
    #[error("{input}: expected {dimension} = {expected}, got {got}")]
    Shape {
        /// Which argument, for example `q`.
        input: &'static str,
        /// Which dimension of it.
        dimension: &'static str,
        /// What the kernel or the other arguments call for.
        expected: usize,
        /// What came.
        got: usize,
    },
    /// The slice behind a view is too short for its shape and strides.
    #[error(
        "{input}: expected a slice of at least {expected} elements for this shape and strides, got {got}"
    )]
    SliceTooShort {
        /// Which argument.
        input: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements in the slice.
        got: usize,
    },
    /// An input is NaN or infinite.
    #[error("{input}: expected finite numbers, got {got} at token {token}, head {head}, channel {channel}")]
    NotFinite {
        /// Which argument.
        input: &'static str,
        /// Token within this call.
        token: usize,
        /// Head of that argument.
        head: usize,
        /// Channel of the head.
        channel: usize,
        /// The offending number.
        got: f32,
    },
    /// Finite inputs gave scores beyond the range of f32.
    #[error("expected scores within the range of f32, got an overflow: the inputs are too large")]
    Overflow,
    /// A kernel that drops old tokens was asked to go back to a length whose last tokens it no longer has.
    #[error(
        "truncate: expected a length of at least {expected}, since tokens before have been dropped, got {got}"
    )]
    Dropped {
        /// The least length that it can go back to without forgetting all.
        expected: usize,
        /// The length that was asked for.
        got: usize,
    },
    /// A setting is out of its range.
    #[error("{setting}: expected {expected}, got {got}")]
    Setting {
        /// Which setting.
        setting: &'static str,
        /// The accepted range.
        expected: &'static str,
        /// The value that came.
        got: f64,
    },
    /// A kernel has no use for the store.
    #[error("{kernel}: expected a store of {expected}, got {got}")]
    Store {
        /// Which kernel.
        kernel: &'static str,
        /// The stores it takes, and where the others belong.
        expected: &'static str,
        /// The store that came.
        got: KvStore,
    },
    /// A text does not name what it should.
    #[error("{what}: expected {expected}, got {got:?}")]
    Name {
        /// What was being read.
        what: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// The text that came.
        got: String,
    },
    /// Settings that no kernel takes.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Coding, storing or charging failed.
    #[error(transparent)]
    Core(#[from] CoreError),
}

/// A field of a [`KernelSpec`](crate::KernelSpec) that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {got}")]
pub struct SpecError {
    /// Which field, such as `window` or `layers[3].store`.
    pub field: String,
    /// What is accepted.
    pub expected: String,
    /// What came.
    pub got: String,
}

impl SpecError {
    pub(crate) fn new(
        field: impl Into<String>,
        expected: impl Into<String>,
        got: impl std::fmt::Display,
    ) -> Self {
        Self { field: field.into(), expected: expected.into(), got: got.to_string() }
    }
}
