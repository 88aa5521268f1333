//! Which instructions add up the products.

use std::fmt;

use deltallm_attn::SimdLevel;

/// The instructions that a [`TernaryLinear`](super::TernaryLinear) multiplies with: a proof that this machine has them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TernaryKernel(Instructions);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Instructions {
    Scalar,
}

impl TernaryKernel {
    /// The fastest of a level.
    pub fn of(_: SimdLevel) -> Self {
        Self(Instructions::Scalar)
    }

    /// `scalar`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Scalar => "scalar",
        }
    }
}

impl fmt::Debug for TernaryKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for TernaryKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
