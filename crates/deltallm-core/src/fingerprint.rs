//! Which model a profile belongs to.

use std::fmt;

/// Names a model by its configuration; written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct ModelFingerprint(pub u64);

impl fmt::Display for ModelFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(feature = "serde")]
impl From<ModelFingerprint> for String {
    fn from(model: ModelFingerprint) -> Self {
        model.to_string()
    }
}
