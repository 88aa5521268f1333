//! The three kernels by name.

use std::{fmt, str::FromStr};

use crate::AttentionError;

/// Which attention runs.
///
/// ```
/// use deltallm_attn::KernelKind;
///
/// assert_eq!("delta".parse::<KernelKind>()?, KernelKind::Delta);
/// assert_eq!(KernelKind::default().to_string(), "hybrid");
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum KernelKind {
    /// Exact: [`DenseAttention`](crate::DenseAttention).
    Dense,
    /// Delta-coded keys everywhere: [`DeltaAttention`](crate::DeltaAttention).
    Delta,
    /// Exact window and sinks, delta-coded keys for the rest: [`HybridAttention`](crate::HybridAttention).
    #[default]
    Hybrid,
}

impl KernelKind {
    /// Every kernel, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::Dense, Self::Delta, Self::Hybrid];

    /// The name, as on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Delta => "delta",
            Self::Hybrid => "hybrid",
        }
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KernelKind {
    type Err = AttentionError;

    fn from_str(name: &str) -> Result<Self, AttentionError> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| AttentionError::Name {
            what: "kernel",
            expected: "dense, delta or hybrid",
            got: name.to_owned(),
        })
    }
}
