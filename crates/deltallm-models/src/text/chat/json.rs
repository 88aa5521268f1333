//! The filter `tojson` of `transformers`: Python's `json.dumps`, without escapes for HTML.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::written::MAX_DEPTH;

/// Widest indentation of a level, in characters.
const MAX_INDENT: usize = 64;

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let option = |index: usize, name| {
        let given = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<Value>>(name)?,
        };
        Ok::<_, Error>(given.filter(|value| !value.is_none()))
    };
    let ensure_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = option(1, "indent")?.map(|value| indentation(&value)).transpose()?;
    let (item_separator, key_separator) = match option(2, "separators")? {
        Some(pair) => (separator(&pair, 0)?, separator(&pair, 1)?),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let sort_keys = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let mut writer = Writer {
        state,
        json: String::new(),
        ensure_ascii,
        indent,
        item_separator,
        key_separator,
        sort_keys,
        depth: 0,
    };
    writer.value(value)?;
    Ok(writer.json)
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", detail.into()))
}

/// A number of spaces, or what to indent with.
fn indentation(value: &Value) -> Result<String, Error> {
    let indent = match value.as_str() {
        Some(text) => text.to_owned(),
        // As in Python, true is 1, and less than nothing is nothing.
        None => match i64::try_from(value.clone()) {
            Ok(width) => " ".repeat(usize::try_from(width).unwrap_or(0).min(MAX_INDENT + 1)),
            Err(_) => {
                return Err(invalid(format!(
                    "expected a number or a string as indent, got {}",
                    value.kind()
                )));
            }
        },
    };
    match indent.chars().count() <= MAX_INDENT {
        true => Ok(indent),
        false => Err(invalid(format!("expected an indent of at most {MAX_INDENT}"))),
    }
}

fn separator(pair: &Value, index: usize) -> Result<String, Error> {
    let text = pair.get_item_by_index(index)?;
    match text.as_str() {
        Some(text) if pair.len() == Some(2) => Ok(text.to_owned()),
        _ => Err(invalid("expected two strings as separators")),
    }
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    json: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.push("null"),
            ValueKind::Bool | ValueKind::Number => self.push(&scalar(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.container(['[', ']'], value.try_iter()?, |writer, item| writer.value(&item))
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    self.state.consume_fuel(1)?;
                    let text = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool | ValueKind::Number => scalar(&key),
                        kind => {
                            return Err(invalid(format!("expected strings and numbers as keys, got {kind}")));
                        }
                    };
                    entries.push((text, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container(['{', '}'], entries, |writer, (key, value)| {
                    writer.string(&key)?;
                    writer.json.push_str(&writer.key_separator);
                    writer.value(&value)
                })
            }
            kind => Err(invalid(format!("expected a value that JSON has, got {kind}"))),
        }
    }

    fn container<T>(
        &mut self,
        [open, close]: [char; 2],
        items: impl IntoIterator<Item = T>,
        write: impl Fn(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(invalid(format!(
                "expected at most {MAX_DEPTH} levels of lists and objects, got more"
            )));
        }
        self.depth += 1;
        self.json.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                self.json.push_str(&self.item_separator);
            }
            empty = false;
            self.new_line()?;
            write(self, item)?;
        }
        self.depth -= 1;
        if !empty {
            self.new_line()?;
        }
        self.json.push(close);
        Ok(())
    }

    fn new_line(&mut self) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            self.json.push('\n');
            for _ in 0..self.depth {
                self.json.push_str(indent);
            }
            self.state.consume_fuel(self.depth as u64)?;
        }
        Ok(())
    }

    /// Everything is paid for before it is written: values can be written many times over.
    fn push(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(1 + text.len() as u64 / 64)?;
        self.json.push_str(text);
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.push("\"")?;
        self.state.consume_fuel(text.len() as u64 / 64)?;
        for letter in text.chars() {
            match letter {
                '"' => self.json.push_str("\\\""),
                '\\' => self.json.push_str("\\\\"),
                '\n' => self.json.push_str("\\n"),
                '\r' => self.json.push_str("\\r"),
                '\t' => self.json.push_str("\\t"),
                '\u{8}' => self.json.push_str("\\b"),
                '\u{c}' => self.json.push_str("\\f"),
                '\0'..' ' => self.escape(letter),
                '\u{7f}'.. if self.ensure_ascii => self.escape(letter),
                _ => self.json.push(letter),
            }
        }
        self.json.push('"');
        Ok(())
    }

    fn escape(&mut self, letter: char) {
        for unit in letter.encode_utf16(&mut [0; 2]) {
            self.json.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// A number or a truth value; numbers as Python's `repr` writes them.
fn scalar(value: &Value) -> String {
    match (value.kind(), f64::try_from(value.clone())) {
        (ValueKind::Number, Ok(number)) if !value.is_integer() => float(number),
        (ValueKind::Number, _) => value.to_string(),
        _ => value.is_true().to_string(),
    }
}

fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let scientific = format!("{number:e}");
    match scientific.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if !(-4..16).contains(&exponent) => format!("{digits}e{exponent:+03}"),
        _ => format!("{number:?}"),
    }
}
