//! The fields of a JSON object. Every field is asked for, known to change nothing, or refused.

use serde_json::{Map, Value};

use super::ConfigError;
use super::irrelevant_fields::{is_irrelevant, is_off};

/// An object whose fields are asked for by name, each of the type that it must have.
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// The object's own name with a dot; nothing for the file itself.
    place: String,
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a file.
    pub(super) fn new(json: &'a Value) -> Result<Self, ConfigError> {
        let object = json.as_object().ok_or_else(|| wrong_type("config.json", "an object", json))?;
        Ok(Self { object, place: String::new(), asked: Vec::new() })
    }

    /// The value of a field, unless it is absent or null, which `transformers` takes for absent.
    pub(super) fn present(&mut self, name: &'static str) -> Option<&'a Value> {
        self.asked.push(name);
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether there is such a field, be it null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    fn typed<T>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        cast: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let value = self.present(name);
        value.map(|value| cast(value).ok_or_else(|| wrong_type(name, expected, value))).transpose()
    }

    /// The fields of an object within.
    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Self>, ConfigError> {
        let object = self.typed(name, "an object", Value::as_object)?;
        let place = format!("{}{name}.", self.place);
        Ok(object.map(|object| Self { object, place, asked: Vec::new() }))
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn array(&mut self, name: &'static str) -> Result<Option<&'a [Value]>, ConfigError> {
        self.typed(name, "an array", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn integer(&mut self, name: &'static str) -> Result<Option<u64>, ConfigError> {
        self.typed(name, "a non-negative integer", Value::as_u64)
    }

    pub(super) fn float(&mut self, name: &'static str) -> Result<Option<f32>, ConfigError> {
        self.typed(name, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn required(&mut self, name: &'static str) -> Result<u64, ConfigError> {
        self.integer(name)?.ok_or_else(|| ConfigError::Missing { key: name.to_owned() })
    }

    pub(super) fn required_or(
        &mut self,
        name: &'static str,
        default: Option<u64>,
    ) -> Result<u64, ConfigError> {
        self.integer(name)?.or(default).ok_or_else(|| ConfigError::Missing { key: name.to_owned() })
    }

    pub(super) fn required_float(&mut self, name: &'static str) -> Result<f32, ConfigError> {
        self.float(name)?.ok_or_else(|| ConfigError::Missing { key: name.to_owned() })
    }

    /// Refuses a number other than 1, which stands for nothing being done.
    pub(super) fn one(&mut self, name: &'static str) -> Result<(), ConfigError> {
        match self.float(name)?.filter(|&got| got != 1.0) {
            None => Ok(()),
            Some(got) => Err(self.unsupported(name, "1", got)),
        }
    }

    /// The error for a value that the graph does not have.
    pub(super) fn unsupported(&self, name: &str, expected: &'static str, got: impl ToString) -> ConfigError {
        ConfigError::Unsupported { key: format!("{}{name}", self.place), expected, got: got.to_string() }
    }

    /// Whether there are no fields.
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// Refuses what has not been asked for, unless it changes nothing or says that something is not there.
    pub(super) fn refuse_others(&self) -> Result<(), ConfigError> {
        let unknown = self.object.iter().find(|(name, value)| {
            !self.asked.contains(&name.as_str()) && !is_off(value) && !is_irrelevant(name)
        });
        match unknown {
            None => Ok(()),
            Some((name, value)) => {
                Err(ConfigError::Unknown { key: format!("{}{name}", self.place), got: describe(value) })
            }
        }
    }
}

pub(super) fn wrong_type(key: &str, expected: &'static str, got: &Value) -> ConfigError {
    ConfigError::WrongType { key: key.to_owned(), expected, got: describe(got) }
}

/// A value in a message: numbers as they are, of others the type.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) => "a string".to_owned(),
        scalar => scalar.to_string(),
    }
}
