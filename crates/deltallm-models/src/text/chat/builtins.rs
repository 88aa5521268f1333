//! The filters, tests and functions of Jinja that go through what they get, or make a text of it: paid for as in
//! [`cost`](super::cost). Those of minijinja that are not here count what they do.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, StringInput, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State, Value, filters, functions, tests};
use minijinja_contrib::globals::{cycler, joiner};

use super::cost::{self, invalid};

pub(super) fn add_to(environment: &mut Environment) {
    add_filters_of_lists(environment);
    add_filters_of_texts(environment);
    add_tests(environment);
    environment.add_function("namespace", |state: &State, values: Option<ValueOrKwargs>| {
        state.consume_fuel(values.as_ref().and_then(|values| values.len()).unwrap_or(0) as u64)?;
        functions::namespace(values)
    });
    environment.add_function("joiner", |separator: Option<Value>| {
        printable("joiner", separator.as_slice())?;
        Ok::<_, Error>(joiner(separator))
    });
    environment.add_function("cycler", |items: Rest<Value>| {
        printable("cycler", &items)?;
        cycler(items.0)
    });
}

/// What these hold is written without being looked at.
fn printable(name: &str, values: &[Value]) -> Result<(), Error> {
    match values.iter().find(|value| value.as_object().is_some()) {
        Some(value) => Err(invalid(format!("{name}: expected texts or numbers, got {}", value.kind()))),
        None => Ok(()),
    }
}

fn add_filters_of_lists(environment: &mut Environment) {
    type Sorting = fn(&State, Value, Kwargs) -> Result<Value, Error>;
    let sorting: [(&str, Sorting); 4] =
        [("sort", filters::sort), ("unique", filters::unique), ("min", filters::min), ("max", filters::max)];
    for (name, filter) in sorting {
        environment.add_filter(name, move |state: &State, list: Value, options: Kwargs| {
            cost::sort(state, &list)?;
            filter(state, list, options)
        });
    }
    environment.add_filter("dictsort", |state: &State, map: &Value, options: Kwargs| {
        cost::sort(state, map)?;
        filters::dictsort(map, options)
    });
    environment.add_filter(
        "groupby",
        |state: &State, list: Value, attribute: Option<&str>, options: Kwargs| {
            cost::sort(state, &list)?;
            filters::groupby(list, attribute, options)
        },
    );
    environment.add_filter(
        "join",
        |state: &mut State,
         list: &Value,
         separator: Option<Value>,
         attribute: Option<&str>,
         options: Kwargs| {
            cost::walk(state, list)?;
            let separator = separator.or(options.get::<Option<Value>>("d")?);
            let separator = separator.map(|separator| cost::text(state, separator)).transpose()?;
            let separator = separator.as_ref().map(|text| StringInput::new(state, text)).transpose()?;
            filters::join(state, list, separator, attribute, options)
        },
    );
    environment.add_filter(
        "sum",
        |state: &State, list: Value, attribute: Option<&str>, start: Option<Value>, options: Kwargs| {
            cost::walk(state, &list)?;
            // Each step makes a longer list or text.
            let given = start.clone().or(options.get::<Option<Value>>("start")?);
            if given.is_some_and(|start| !start.is_number()) {
                return Err(invalid("sum: expected a number to start from"));
            }
            filters::sum(state, list, attribute, start, options)
        },
    );
    environment.add_filter("attr", |state: &State, value: &Value, name: &Value| {
        cost::key(state, name)?;
        cost::read(state, value)?;
        filters::attr(value, name)
    });
    environment.add_filter("map", |state: &mut State, list: Value, args: Rest<ValueOrKwargs>| {
        pay_for_each(state, &list, &args)?;
        filters::map(state, list, args)
    });
    for (name, keep) in [("select", true), ("reject", false)] {
        environment.add_filter(
            name,
            move |state: &mut State, list: Value, test: Option<&str>, args: Rest<ValueOrKwargs>| {
                pay_for_each(state, &list, &args)?;
                let filter = if keep { filters::select } else { filters::reject };
                filter(state, list, test.map(Cow::Borrowed), args)
            },
        );
    }
    for (name, keep) in [("selectattr", true), ("rejectattr", false)] {
        environment.add_filter(
            name,
            move |state: &mut State,
                  list: Value,
                  path: &str,
                  test: Option<&str>,
                  args: Rest<ValueOrKwargs>| {
                if is_index(path) {
                    cost::walk(state, &list)?;
                }
                pay_for_each(state, &list, &args)?;
                let filter = if keep { filters::selectattr } else { filters::rejectattr };
                filter(state, list, path.into(), test.map(Cow::Borrowed), args)
            },
        );
    }
}

/// Pays for a filter or test of each item of a list: for its arguments each time, and for the list if it may look for
/// characters in it.
fn pay_for_each(state: &State, list: &Value, args: &[ValueOrKwargs]) -> Result<(), Error> {
    let items = list.len().unwrap_or(1);
    let args: Vec<Value> = args.iter().map(|value| (**value).clone()).collect();
    let path =
        args.iter().find(|value| value.is_kwargs()).and_then(|options| options.get_attr("attribute").ok());
    if path.is_some_and(|path| path.as_str().is_none_or(is_index)) {
        cost::walk(state, list)?;
    }
    for _ in 0..items {
        for value in &args {
            cost::walk(state, value)?;
        }
    }
    Ok(())
}

/// Whether a path such as `content.3` has an index in it.
fn is_index(path: &str) -> bool {
    path.split('.').any(|part| part.parse::<usize>().is_ok())
}

fn add_filters_of_texts(environment: &mut Environment) {
    type Changing = fn(StringInput<'_>) -> Value;
    let changing: [(&str, Changing); 3] =
        [("upper", filters::upper), ("lower", filters::lower), ("capitalize", filters::capitalize)];
    for (name, filter) in changing {
        environment.add_filter(name, move |state: &State, value: Value| {
            Ok::<_, Error>(filter(StringInput::new(state, &cost::text(state, value)?)?))
        });
    }
    environment.add_filter("title", |state: &State, value: Value| {
        Ok::<_, Error>(filters::title(StringInput::new(state, &cost::text(state, value)?)?.as_str().into()))
    });
    environment.add_filter("safe", |state: &State, value: Value| {
        Ok::<_, Error>(filters::safe(cost::text(state, value)?.to_string()))
    });
    for name in ["escape", "e"] {
        environment.add_filter(name, |state: &mut State, value: Value| {
            let text = cost::text(state, value)?;
            filters::escape(state, &text)
        });
    }
    environment.add_filter("trim", |state: &State, value: Value, letters: Option<&str>| {
        let text = cost::text(state, value)?;
        let text = StringInput::new(state, &text)?;
        cost::strip(state, text.as_str(), letters.unwrap_or_default())?;
        Ok::<_, Error>(filters::trim(text, letters.map(Cow::Borrowed)))
    });
    environment.add_filter("replace", replace);
    environment.add_filter(
        "indent",
        |state: &State,
         value: Value,
         width: Option<usize>,
         first: Option<bool>,
         more: Rest<ValueOrKwargs>| { indent(state, value, width, first, &more) },
    );
    environment.add_filter("format", |state: &mut State, format: &Value, args: Rest<ValueOrKwargs>| {
        let values: Vec<Value> = args.iter().map(|value| (**value).clone()).collect();
        cost::format(state, format.as_str().unwrap_or_default(), '%', &values)?;
        filters::format(state, format, args)
    });
}

fn replace(
    state: &mut State,
    value: Value,
    old: Value,
    new: Value,
    more: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let [value, old, new] = [cost::text(state, value)?, cost::text(state, old)?, cost::text(state, new)?];
    let [value, old, new] =
        [StringInput::new(state, &value)?, StringInput::new(state, &old)?, StringInput::new(state, &new)?];
    let more = more.into_values();
    let (count, options): (Option<i64>, Kwargs) = from_args(&more)?;
    let count = match count {
        Some(count) => Some(count),
        None => options.get::<Option<i64>>("count")?,
    };
    options.assert_all_used()?;
    let Some(count) = count.and_then(|count| usize::try_from(count).ok()) else {
        return filters::replace(state, value, old, new);
    };
    let made = value.as_str().matches(old.as_str()).count().min(count).saturating_mul(new.as_str().len());
    state.consume_fuel(made as u64 / 64)?;
    Ok(value.as_str().replacen(old.as_str(), new.as_str(), count).into())
}

fn indent(
    state: &State,
    value: Value,
    width: Option<usize>,
    first: Option<bool>,
    more: &[ValueOrKwargs],
) -> Result<Value, Error> {
    let more: Vec<Value> = more.iter().map(|value| (**value).clone()).collect();
    let (blank, options): (Option<bool>, Kwargs) = from_args(&more)?;
    let text = cost::text(state, value)?;
    let text = StringInput::new(state, &text)?;
    let width = match width {
        Some(width) => Some(width),
        None => options.get::<Option<usize>>("width")?,
    };
    let lines = 1 + text.as_str().matches('\n').count();
    state.consume_fuel(lines.saturating_mul(width.unwrap_or(4)) as u64 / 64)?;
    filters::indent(text, width, first, blank, options)
}

fn add_tests(environment: &mut Environment) {
    type Comparing = fn(&Value, &Value) -> bool;
    let comparing: [(&[&str], Comparing); 7] = [
        (&["eq", "equalto", "=="], tests::is_eq),
        (&["ne", "!="], tests::is_ne),
        (&["lt", "lessthan", "<"], tests::is_lt),
        (&["le", "<="], tests::is_le),
        (&["gt", "greaterthan", ">"], tests::is_gt),
        (&["ge", ">="], tests::is_ge),
        (&["sameas"], tests::is_sameas),
    ];
    for (names, test) in comparing {
        for name in names {
            environment.add_test(*name, move |state: &State, value: &Value, other: &Value| {
                cost::walk(state, value)?;
                cost::walk(state, other)?;
                Ok::<_, Error>(test(value, other))
            });
        }
    }
    environment.add_test("in", |state: &State, value: &Value, list: &Value| {
        cost::walk(state, value)?;
        cost::walk(state, list)?;
        tests::is_in(state, value, list)
    });
    type Ending = fn(Cow<'_, str>, Cow<'_, str>) -> bool;
    let ending: [(&str, Ending); 2] =
        [("startingwith", tests::is_startingwith), ("endingwith", tests::is_endingwith)];
    for (name, test) in ending {
        environment.add_test(name, move |state: &State, value: Value, other: Value| {
            let (value, other) = (cost::text(state, value)?, cost::text(state, other)?);
            let (value, other) = (StringInput::new(state, &value)?, StringInput::new(state, &other)?);
            Ok::<_, Error>(test(value.as_str().into(), other.as_str().into()))
        });
    }
    type Reading = fn(&Value) -> bool;
    let reading: [(&str, Reading); 2] = [("lower", tests::is_lower), ("upper", tests::is_upper)];
    for (name, test) in reading {
        environment.add_test(name, move |state: &State, value: &Value| {
            cost::read(state, value)?;
            Ok::<_, Error>(test(value))
        });
    }
    // As Jinja has them: a text and a dictionary are sequences, what is not defined is an empty one, and none is nothing.
    let holds = |value: &Value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        // A range.
        ValueKind::Iterable => value.len().is_some(),
        _ => false,
    };
    environment.add_test("sequence", move |value: &Value| holds(value));
    environment
        .add_test("iterable", move |value: &Value| holds(value) || value.kind() == ValueKind::Iterable);
}
