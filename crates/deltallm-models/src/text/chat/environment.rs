//! What a chat template can call: what `transformers` gives it, in Jinja as Python has it.
//!
//! minijinja counts instructions and what most filters make. What it does not count is paid for here.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Tuple;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::builtins;
use super::cost;
use super::error::{ChatError, Raised};
use super::json::to_json;
use super::written::{to_string, write_paid};

/// Deepest nesting of macros and loops: a macro is four, a loop one.
const MAX_RECURSION: usize = 200;

/// An environment without templates.
///
/// # Errors
/// [`ChatError::Syntax`] if minijinja does not know the rules for white space.
pub(super) fn environment() -> Result<Environment<'static>, ChatError> {
    let mut environment = Environment::new();
    // The line end after a block and the indentation before it are not output.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| ChatError::syntax(&error))?);
    environment.set_recursion_limit(MAX_RECURSION);
    // Otherwise errors differ between builds, and hold the source.
    environment.set_debug(false);
    environment.set_formatter(write_value);
    environment.set_unknown_method_callback(call_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", to_string);
    environment.add_filter("wordcount", word_count);
    cost::add_operands(&mut environment);
    builtins::add_to(&mut environment);
    // No chat template has these, `transformers` has few of them, and what they make is not counted.
    environment.remove_global("debug");
    for filter in ["split", "lines", "zip", "chain", "pprint"] {
        environment.remove_filter(filter);
    }
    Ok(environment)
}

fn raise_exception(state: &State, message: &Value) -> Result<Value, Error> {
    let mut text = String::new();
    write_paid(&mut text, state, message)?;
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised::new(&text)))
}

fn word_count(text: &str) -> usize {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
        .count()
}

fn write_value(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    write_paid(output, state, value)
}

/// Methods of Python's strings and dictionaries.
fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    for arg in args {
        cost::walk(state, arg)?;
    }
    let Some(text) = value.as_str() else {
        match method {
            "get" => args.first().map_or(Ok(()), |key| cost::key(state, key))?,
            "count" => cost::walk(state, value)?,
            _ => {}
        }
        return unknown_method_callback(state, value, method, args);
    };
    let strings: Vec<&str> = args.iter().map_while(Value::as_str).collect();
    match (method, &*strings) {
        ("removeprefix", [prefix]) => Ok(text.strip_prefix(prefix).unwrap_or(text).into()),
        ("removesuffix", [suffix]) => Ok(text.strip_suffix(suffix).unwrap_or(text).into()),
        ("partition", [separator]) => {
            let (before, found, after) = match text.split_once(separator) {
                Some((before, after)) => (before, *separator, after),
                None => (text, "", ""),
            };
            Ok(Tuple::from([before, found, after].map(Value::from)).into())
        }
        ("rpartition", [separator]) => {
            let (before, found, after) = match text.rsplit_once(separator) {
                Some((before, after)) => (before, *separator, after),
                None => ("", "", text),
            };
            Ok(Tuple::from([before, found, after].map(Value::from)).into())
        }
        ("rsplit", [separator]) if !separator.is_empty() => {
            pay_for_pieces(state, text.matches(separator).count())?;
            // A negative number is no limit, as for `split`.
            let most = args.get(1).and_then(|most| usize::try_from(most.clone()).ok());
            let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
            let mut pieces: Vec<Value> = text.rsplitn(most, separator).map(Value::from).collect();
            pieces.reverse();
            Ok(pieces.into())
        }
        ("split", [separator, ..]) if !separator.is_empty() => {
            pay_for_pieces(state, text.matches(separator).count())?;
            unknown_method_callback(state, value, method, args)
        }
        ("split" | "splitlines", _) => {
            pay_for_pieces(state, text.split_whitespace().count().max(text.matches('\n').count()))?;
            unknown_method_callback(state, value, method, args)
        }
        ("strip" | "lstrip" | "rstrip", [letters]) => {
            cost::strip(state, text, letters)?;
            unknown_method_callback(state, value, method, args)
        }
        ("format", _) => {
            state.consume_fuel(widths(text) / 64)?;
            cost::format(state, text, '{', args)?;
            unknown_method_callback(state, value, method, args)
        }
        _ => unknown_method_callback(state, value, method, args),
    }
}

fn pay_for_pieces(state: &State, pieces: usize) -> Result<(), Error> {
    state.consume_fuel(pieces as u64)
}

/// The characters that the fields of a format string ask for: the sum of the numbers in it, where they are too large 2^64.
fn widths(format: &str) -> u64 {
    let fields = format.split('{').skip(1).map(|field| field.split('}').next().unwrap_or_default());
    let numbers = fields.flat_map(|field| field.split(|letter: char| !letter.is_ascii_digit()));
    let widths = numbers.filter(|number| !number.is_empty()).map(|number| number.parse().unwrap_or(u64::MAX));
    widths.fold(0, u64::saturating_add)
}
