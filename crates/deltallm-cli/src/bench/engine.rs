//! What is timed: the interface between the rounds and a model with its cache.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use deltallm::{KernelKind, KvStore, Precision};

use crate::args::{parse_precision, parse_store};

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
        kind: KernelKind,
        /// As its `--kv`.
        store: KvStore,
        /// As its `--precision`.
        precision: Precision,
    },
}

impl FromStr for EngineName {
    type Err = String;

    /// Whether a rival exists, and a store and a precision fit the model, is found out when the model is there.
    fn from_str(name: &str) -> Result<Self, String> {
        let parts: Vec<&str> = name.split('-').collect();
        let kind = parts[0].parse::<KernelKind>();
        let (kind, store, precision) = match (kind, &parts[1..]) {
            (Ok(kind), []) => (kind, "f16", "f32"),
            (Ok(kind), [store]) => (kind, *store, "f32"),
            (Ok(kind), [store, precision]) => (kind, *store, *precision),
            (Err(_), []) if !name.is_empty() => return Ok(Self::Rival(name.to_owned())),
            _ => return Err("expected dense, delta or hybrid with a store, such as hybrid-compact".into()),
        };
        Ok(Self::Ours { kind, store: parse_store(store)?, precision: parse_precision(precision)? })
    }
}

/// As it was given, with everything said but f32 products.
impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rival(name) => f.write_str(name),
            Self::Ours { kind, store, precision: Precision::F32 } => write!(f, "{kind}-{store}"),
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
