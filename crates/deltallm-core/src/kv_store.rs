//! How a layer's cache keeps its keys and values.

use std::{fmt, str::FromStr};

use crate::{element::ElementType, error::CoreError};

/// Tokens in one block of the cache: a page of rows, and the distance between two key frames of a delta matrix.
pub const BLOCK_TOKENS: usize = 64;

/// The store of a layer's keys and values.
///
/// The first three keep everything in one float type. The others are for long contexts: what is far from the query is
/// quantised, the exact window and the sinks are in f16 (`docs/method.md`, "What is stored").
///
/// ```
/// use deltallm_core::{ElementType, KvStore};
///
/// let store: KvStore = "compact".parse()?;
/// assert_eq!(store.exact(), ElementType::F16);
/// assert_eq!(store.to_string(), "compact");
/// # Ok::<(), deltallm_core::CoreError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum KvStore {
    /// binary32: what the projections produce, stored as it is.
    #[default]
    F32,
    /// binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits per number, in groups of 32 channels with a scale; in hybrid attention without deltas. Keys are held relative to the mean of
    /// the first 64, which stay in f16.
    Int8,
    /// Far keys delta-coded in 8-bit codes, most of whose differences take 4 bits, far values in 4 bits with a scale per 32 channels. For
    /// attention with deltas.
    Compact,
}

impl KvStore {
    /// Every store, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Compact];

    /// The type of the exact window and the sinks; in the float stores, of everything.
    pub fn exact(self) -> ElementType {
        match self {
            Self::F32 => ElementType::F32,
            Self::Bf16 => ElementType::Bf16,
            _ => ElementType::F16,
        }
    }

    /// Whether far keys and values are held in fewer bits than the exact ones.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Int8 | Self::Compact)
    }

    /// The nearest store that dense attention takes: this one, or 8 bits for the compact one.
    pub fn dense(self) -> Self {
        match self {
            Self::Compact => Self::Int8,
            store => store,
        }
    }

    /// Whether hybrid attention delta-codes far keys in this store.
    pub fn is_delta(self) -> bool {
        self != Self::Int8
    }

    /// The name, as on the command line and in profiles.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Compact => "compact",
            float => float.exact().name(),
        }
    }
}

impl From<ElementType> for KvStore {
    /// The store that keeps everything in this type.
    fn from(element: ElementType) -> Self {
        match element {
            ElementType::F32 => Self::F32,
            ElementType::F16 => Self::F16,
            ElementType::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for KvStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvStore {
    type Err = CoreError;

    fn from_str(name: &str) -> Result<Self, CoreError> {
        Self::ALL.into_iter().find(|store| store.name() == name).ok_or_else(|| CoreError::UnknownName {
            what: "store",
            expected: "f32, f16, bf16, int8, compact",
            got: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for store in KvStore::ALL {
            assert_eq!(store.to_string().parse(), Ok(store));
        }
        for unknown in ["q8_0", "int4", ""] {
            let error = CoreError::UnknownName {
                what: "store",
                expected: "f32, f16, bf16, int8, compact",
                got: unknown.to_owned(),
            };
            assert_eq!(unknown.parse::<KvStore>(), Err(error));
        }
    }

    #[test]
    fn a_float_store_is_exact_in_its_own_type() {
        for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
            assert_eq!(KvStore::from(element).exact(), element);
            assert!(!KvStore::from(element).is_quantised());
        }
    }
}
