//! Values as text, as Python's `str` and `repr` write them.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Deepest nesting of a list or dictionary that is written or gone through.
pub(super) const MAX_DEPTH: usize = 200;

/// The text of a value; a text itself as it is.
pub(super) fn to_string(state: &State, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    let mut text = String::new();
    write_paid(&mut text, state, value)?;
    Ok(Value::from(text))
}

/// Writes a value as Python's `str` does. A list may hold another many times, which holds a third many times: the text can be
/// far longer than what the template did to make it, so it is paid for while it is written.
pub(super) fn write_paid(output: &mut impl Write, state: &State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => Ok(output.write_str(text)?),
        None => write_item(output, state, value, 0),
    }
}

/// Writes a value as Python's `repr` does.
fn write_item(output: &mut impl Write, state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        let detail =
            format!("expected at most {MAX_DEPTH} levels of lists and dictionaries in a text, got more");
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    state.consume_fuel(1 + value.as_str().map_or(0, str::len) as u64 / 64)?;
    match value.kind() {
        ValueKind::Map => {
            output.write_char('{')?;
            for (index, key) in value.try_iter()?.enumerate() {
                output.write_str(if index > 0 { ", " } else { "" })?;
                write_item(output, state, &key, depth + 1)?;
                output.write_str(": ")?;
                write_item(output, state, &value.get_item(&key)?, depth + 1)?;
            }
            Ok(output.write_char('}')?)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.downcast_object_ref::<Tuple>();
            output.write_char(if tuple.is_some() { '(' } else { '[' })?;
            for (index, item) in value.try_iter()?.enumerate() {
                output.write_str(if index > 0 { ", " } else { "" })?;
                write_item(output, state, &item, depth + 1)?;
            }
            Ok(output.write_str(match tuple.map(|tuple| tuple.len()) {
                Some(1) => ",)",
                Some(_) => ")",
                None => "]",
            })?)
        }
        ValueKind::String => Ok(write!(output, "{value:?}")?),
        _ => Ok(write!(output, "{value}")?),
    }
}
