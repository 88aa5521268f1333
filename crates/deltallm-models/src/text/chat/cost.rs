//! What minijinja does within one instruction and does not count: going through what lists and dictionaries hold.
//!
//! It is paid for before it happens, by the whole of what may be looked at: a value counts as one instruction, and so do
//! 64 bytes of text. Operators are paid for by the filters here, which [`operands`](super::operands) puts behind operands.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::written::{MAX_DEPTH, to_string};

/// Of comparisons and `in`: the operand is gone through.
pub(super) const WALKED: &str = "operand_walked";
/// Of `+` and of slices: a list that is made of others on demand is made now.
pub(super) const FLAT: &str = "operand_flat";
/// Of `~`: lists are written as they are everywhere else.
pub(super) const TEXT: &str = "operand_text";
/// Of `*`: no list.
pub(super) const FACTOR: &str = "operand_factor";
/// A key of a dictionary, or an index.
pub(super) const KEY: &str = "operand_key";
/// What an index or a loop counts the characters of.
pub(super) const INDEXED: &str = "operand_indexed";

/// Adds the filters of operands.
pub(super) fn add_operands(environment: &mut Environment) {
    environment.add_filter(WALKED, |state: &State, value: Value| walk(state, &value).map(|()| value));
    environment.add_filter(FLAT, |state: &State, value: Value| flat(state, value));
    environment.add_filter(TEXT, |state: &State, value: Value| text(state, value));
    environment.add_filter(FACTOR, |value: Value| match value.as_object() {
        None => Ok(value),
        Some(_) => Err(invalid("`*`: expected numbers, or a text and a number; a list cannot be multiplied")),
    });
    environment.add_filter(KEY, |state: &State, value: Value| key(state, &value).map(|()| value));
    environment.add_filter(INDEXED, |state: &State, value: Value| read(state, &value).map(|()| value));
}

pub(super) fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

/// Pays for going through a value and all that it holds.
pub(super) fn walk(state: &State, value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(_) => weight(state, value, 0).map(drop),
        None => read(state, value),
    }
}

/// The weight of a value, paid for.
fn weight(state: &State, value: &Value, depth: usize) -> Result<u64, Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!(
            "expected at most {MAX_DEPTH} levels of lists and dictionaries, got more"
        )));
    }
    let mut weight = 1 + value.as_str().map_or(0, str::len) as u64 / 64;
    state.consume_fuel(weight)?;
    let kind = value.kind();
    if matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        for item in value.try_iter()?.checked() {
            let item = item?;
            weight += self::weight(state, &item, depth + 1)?;
            if kind == ValueKind::Map {
                weight += self::weight(state, &value.get_item(&item)?, depth + 1)?;
            }
        }
    }
    Ok(weight)
}

/// Pays for going through what is sorted: an item may be compared with every other.
pub(super) fn sort(state: &State, value: &Value) -> Result<(), Error> {
    state.consume_fuel(1)?;
    if value.as_object().is_none() {
        return read(state, value);
    }
    let (mut items, mut heaviest) = (0_u64, 0);
    for item in value.try_iter()?.checked() {
        let item = item?;
        let mut item_weight = weight(state, &item, 0)?;
        if value.kind() == ValueKind::Map {
            item_weight += weight(state, &value.get_item(&item)?, 0)?;
        }
        heaviest = heaviest.max(item_weight);
        items += 1;
    }
    let comparisons = items * u64::from(items.checked_ilog2().unwrap_or(0));
    state.consume_fuel(comparisons.saturating_mul(heaviest) / 2)
}

/// Pays for reading a text once without copying it. Other values cost nothing.
pub(super) fn read(state: &State, value: &Value) -> Result<(), Error> {
    state.consume_fuel(value.as_str().map_or(0, str::len) as u64 / 512)
}

/// A list that is made of others on demand takes the longer the more of them there are, and may have items without end.
pub(super) fn flat(state: &State, value: Value) -> Result<Value, Error> {
    read(state, &value)?;
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for (index, item) in value.try_iter()?.checked().enumerate() {
        state.consume_fuel(index as u64 % 2)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

/// A list as text, as Python has it; other values as they are.
pub(super) fn text(state: &State, value: Value) -> Result<Value, Error> {
    match value.as_object() {
        Some(_) => to_string(state, &value),
        None => Ok(value),
    }
}

/// Refuses what Python cannot use as a key. Tuples are refused with lists: they may hold as much.
pub(super) fn key(state: &State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_some() {
        return Err(invalid(format!("expected a text or a number as key, got {}", value.kind())));
    }
    state.consume_fuel(value.as_str().map_or(0, str::len) as u64 / 64)
}

/// Pays for a text that contains each of `values` as often as `mark` stands in `format`.
pub(super) fn format(state: &State, format: &str, mark: char, values: &[Value]) -> Result<(), Error> {
    let mut weights = 0_u64;
    for value in values {
        weights += weight(state, value, 0)?;
    }
    state.consume_fuel(weights.saturating_mul(format.matches(mark).count() as u64))
}

/// Pays for taking `letters` off the ends of a text: each letter of it is looked for in them.
pub(super) fn strip(state: &State, text: &str, letters: &str) -> Result<(), Error> {
    state.consume_fuel((text.len() as u64).saturating_mul(letters.len() as u64) / 1024)
}
