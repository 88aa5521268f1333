//! Entries of a JSON object, each of the type that it must have.

use serde_json::{Map, Value};

use super::ConfigError;

pub(super) type Object = Map<String, Value>;

/// The entry, unless it is absent or null, which `transformers` takes for absent.
pub(super) fn present<'a>(object: &'a Object, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn typed<'a, T>(
    object: &'a Object,
    key: &str,
    expected: &'static str,
    cast: impl Fn(&'a Value) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    present(object, key).map(|value| cast(value).ok_or_else(|| wrong_type(key, expected, value))).transpose()
}

pub(super) fn string<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>, ConfigError> {
    typed(object, key, "a string", Value::as_str)
}

pub(super) fn integer(object: &Object, key: &str) -> Result<Option<u64>, ConfigError> {
    typed(object, key, "a non-negative integer", Value::as_u64)
}

pub(super) fn float(object: &Object, key: &str) -> Result<Option<f32>, ConfigError> {
    typed(object, key, "a number", |value| value.as_f64().map(|x| x as f32))
}

/// False where absent.
pub(super) fn boolean(object: &Object, key: &str) -> Result<bool, ConfigError> {
    Ok(typed(object, key, "true or false", Value::as_bool)?.unwrap_or(false))
}

pub(super) fn required(object: &Object, key: &str) -> Result<u64, ConfigError> {
    integer(object, key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
}

pub(super) fn required_float(object: &Object, key: &str) -> Result<f32, ConfigError> {
    float(object, key)?.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })
}

pub(super) fn wrong_type(key: &str, expected: &'static str, got: &Value) -> ConfigError {
    let kind = match got {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(_) => "a string".to_owned(),
        scalar => scalar.to_string(),
    };
    ConfigError::WrongType { key: key.to_owned(), expected, got: kind }
}
