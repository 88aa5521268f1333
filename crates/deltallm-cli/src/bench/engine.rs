//! What is timed: the interface between the rounds and a model with its cache.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A model with a cache.
pub trait Engine {
    /// Empties the cache. What an engine has to make anew for that is made here.
    ///
    /// # Errors
    /// What the engine says.
    fn clear(&mut self) -> anyhow::Result<()>;

    /// Reads a whole prompt into the empty cache and returns the logits after its last token, `[vocab_size]`.
    ///
    /// # Errors
    /// What the engine says.
    fn prefill(&mut self, prompt: &[u32]) -> anyhow::Result<Vec<f32>>;

    /// Appends a token and computes the logits after it.
    ///
    /// # Errors
    /// What the engine says.
    fn decode(&mut self, token: u32) -> anyhow::Result<()>;

    /// Takes the cache back to where the prompt ended.
    ///
    /// # Errors
    /// What the engine says.
    fn rewind(&mut self) -> anyhow::Result<()>;

    /// Bytes of the cache; `None` where the engine does not say.
    fn cache_bytes(&self) -> Option<usize>;
}

/// Who takes part: our attention as `KIND[-STORE[-PRECISION]]`, such as `hybrid-compact`, or another engine by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineName {
    /// Another engine.
    Rival(String),
    /// Ours.
    Ours {
        /// As `--kernel` of `generate`.
        kind: String,
        /// As its `--kv`.
        store: String,
        /// As its `--precision`.
        precision: String,
    },
}

impl FromStr for EngineName {
    type Err = String;

    /// Whether a rival, a store or a precision exists, and fits, is found out when the model is there.
    fn from_str(name: &str) -> Result<Self, String> {
        let parts: Vec<&str> = name.split('-').collect();
        let ours = |kind: &str, store: &str, precision: &str| Self::Ours {
            kind: kind.to_owned(),
            store: store.to_owned(),
            precision: precision.to_owned(),
        };
        match parts[..] {
            [kind @ ("dense" | "delta" | "hybrid")] => Ok(ours(kind, "f16", "f32")),
            [kind @ ("dense" | "delta" | "hybrid"), store] => Ok(ours(kind, store, "f32")),
            [kind @ ("dense" | "delta" | "hybrid"), store, precision] => Ok(ours(kind, store, precision)),
            [rival] if !rival.is_empty() => Ok(Self::Rival(rival.to_owned())),
            _ => Err("expected dense, delta or hybrid with a store, such as hybrid-compact".into()),
        }
    }
}

/// As it was given, with everything said but f32 products.
impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rival(name) => f.write_str(name),
            Self::Ours { kind, store, precision } if precision == "f32" => write!(f, "{kind}-{store}"),
            Self::Ours { kind, store, precision } => write!(f, "{kind}-{store}-{precision}"),
        }
    }
}

/// Another engine, which reads the same file.
#[derive(Debug, Clone, Copy)]
pub struct Rival {
    /// As it is named on the command line.
    pub name: &'static str,
    /// What it is, in words.
    pub settings: &'static str,
    /// The longest sequence that it takes.
    pub longest: usize,
    /// Reads a model file.
    pub open: fn(&Path) -> anyhow::Result<Box<dyn Engine>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_say_the_store() {
        for (name, full) in [
            ("candle", "candle"),
            ("dense", "dense-f16"),
            ("hybrid-compact", "hybrid-compact"),
            ("dense-f16-int16", "dense-f16-int16"),
        ] {
            assert_eq!(name.parse::<EngineName>().unwrap().to_string(), full);
        }
        for bad in ["", "candle-f16", "dense-f16-f32-x"] {
            assert!(bad.parse::<EngineName>().unwrap_err().contains("hybrid-compact"), "{bad}");
        }
    }
}
