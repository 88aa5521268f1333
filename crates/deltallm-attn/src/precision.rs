//! What the products of prompts are made of.

use std::{fmt, str::FromStr};

use crate::AttentionError;

/// The numbers that a prompt's products are made of; sums are 32 bits wide always.
///
/// 16 bits are used where the instruction set has dot products for them ([`is_multiplied_by`](Self::is_multiplied_by)), and where
/// several tiles of queries share the cost of converting keys and values. Decoding multiplies 8-bit keys with 16-bit queries where the
/// instruction set can; all sums end in f32.
///
/// ```
/// use deltallm_attn::{Isa, Precision};
///
/// assert_eq!("int16".parse::<Precision>()?, Precision::Int16);
/// assert!(Precision::F32.is_multiplied_by(Isa::best())); // the others only where the CPU has instructions
/// # Ok::<(), deltallm_attn::AttentionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum Precision {
    /// binary32.
    #[default]
    F32,
    /// bfloat16, with Arm's bf16 extension.
    Bf16,
    /// Integers of 13 bits or more with a scale per key, query, and channel of a block of values, with AVX512-VNNI: up to twice
    /// as fast as f32.
    Int16,
}

impl Precision {
    /// Every precision, in the order of the documentation.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int16];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
        })
    }
}

impl FromStr for Precision {
    type Err = AttentionError;

    fn from_str(name: &str) -> Result<Self, AttentionError> {
        Self::ALL.into_iter().find(|precision| precision.to_string() == name).ok_or_else(|| {
            AttentionError::Name { what: "precision", expected: "f32, bf16 or int16", got: name.to_owned() }
        })
    }
}
