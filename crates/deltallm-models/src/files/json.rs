//! JSON files: of bounded size, and without keys that are there twice.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use deltallm_core::internal::quoted;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Why a file was not read.
pub(crate) enum ReadError {
    Io(io::Error),
    /// Its size in bytes, or what was read of it.
    TooLarge(u64),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads a file of at most `limit` bytes. Devices and pipes are read too, and have no size that could be asked for before.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(ReadError::TooLarge(size));
    }
    let mut text = Vec::new();
    // One more than may be there.
    file.take(limit + 1).read_to_end(&mut text)?;
    match text.len() as u64 {
        got if got > limit => Err(ReadError::TooLarge(got)),
        _ => Ok(text),
    }
}

/// Parses a text in which no object has a key twice. JSON leaves open which of the two counts, and parsers differ.
pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<UniqueKeys>(text)?;
    serde_json::from_slice(text)
}

/// Any JSON value whose objects, inner ones included, have no key twice.
pub(crate) struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if keys.contains(&key) {
                let key = quoted(key);
                return Err(A::Error::custom(format_args!("expected every key once, got `{key}` twice")));
            }
            keys.insert(key);
            entries.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::from_slice;

    #[test]
    fn keys_that_are_there_twice_are_refused_at_any_depth() {
        for text in
            [r#"{"a": 1, "a": 1}"#, r#"[{"b": {"a": 1, "c": 2, "a": null}}]"#, r#"{"a": 1, "\u0061": 2}"#]
        {
            let error = from_slice::<Value>(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("expected every key once, got `a` twice at line 1"), "{error}");
        }
    }

    #[test]
    fn other_texts_are_read_as_ever() {
        let text = r#"[{"a": {"a": -1}, "b": 1.5e3}, true, null, "a", 18446744073709551615, {}]"#;
        let value: Value = from_slice(text.as_bytes()).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        assert!(from_slice::<Value>(b"{").is_err());
        assert!(from_slice::<Value>("[".repeat(1000).as_bytes()).is_err());
    }
}
