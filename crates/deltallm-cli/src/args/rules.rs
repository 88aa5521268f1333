//! Settings that would have no effect beside others, which are refused: whoever gives one expects something of it.

use anyhow::ensure;
use clap::ArgMatches;
use clap::parser::ValueSource;

/// What makes an option idle.
struct Rule {
    /// The option, as clap knows it.
    option: &'static str,
    /// Values of it that ask for nothing, and are true beside anything.
    harmless: &'static [&'static str],
    /// Another option with one of these values, or with any if there are none.
    beside: (&'static str, &'static [&'static str]),
    /// Why it has no effect there.
    because: &'static str,
}

const fn rule(
    option: &'static str,
    harmless: &'static [&'static str],
    beside: (&'static str, &'static [&'static str]),
    because: &'static str,
) -> Rule {
    Rule { option, harmless, beside, because }
}

const DENSE: (&str, &[&str]) = ("kernel", &["dense"]);
const DELTA: (&str, &[&str]) = ("kernel", &["delta"]);
const INT8: (&str, &[&str]) = ("kv", &["int8"]);
const GREEDY: (&str, &[&str]) = ("temperature", &["0"]);
const NOT_PERPLEXITY: (&str, &[&str]) = ("task", &["choices", "schema", "last-word", "squad"]);
const ONE_TEXT: (&str, &[&str]) = ("task", &["perplexity", "squad"]);

const PREFILL: (&str, &[&str]) = ("phases", &["prefill"]);

const NO_DELTAS: &str = "dense attention codes no keys";
const ALL_EXACT: &str = "dense attention is exact everywhere";
const NONE_EXACT: &str = "delta attention has no exact keys; hybrid has";
const WHOLE_KEYS: &str = "int8 holds keys whole, so there are no deltas";
const MOST_PROBABLE: &str = "the most probable token is always taken";

const NOTHING_DECODED: &str = "nothing is decoded";

const RULES: &[Rule] = &[
    rule("profile", &["none"], ("theta", &[]), "one threshold for all replaces what was calibrated"),
    rule("profile", &["none"], ("paper", &[]), "the paper's rule replaces what was calibrated"),
    rule("profile", &["none"], DENSE, "dense attention has nothing to calibrate"),
    rule("theta", &[], DENSE, NO_DELTAS),
    rule("target_sparsity", &[], DENSE, NO_DELTAS),
    rule("paper", &[], DENSE, NO_DELTAS),
    rule("window", &[], DENSE, ALL_EXACT),
    rule("sinks", &[], DENSE, ALL_EXACT),
    rule("skip_margin", &["off"], DENSE, "dense attention skips no values"),
    rule("exact_prompt", &[], DENSE, ALL_EXACT),
    rule("phases", &[], DENSE, ALL_EXACT),
    rule("window", &[], DELTA, NONE_EXACT),
    rule("sinks", &["0"], DELTA, NONE_EXACT),
    rule("skip_margin", &["off"], DELTA, "delta attention skips no values; hybrid does"),
    rule("exact_prompt", &["0"], DELTA, "delta attention is approximate in every prompt"),
    rule("theta", &[], INT8, WHOLE_KEYS),
    rule("target_sparsity", &[], INT8, WHOLE_KEYS),
    rule("paper", &[], INT8, WHOLE_KEYS),
    rule("top_k", &["0"], GREEDY, MOST_PROBABLE),
    rule("top_p", &["1"], GREEDY, MOST_PROBABLE),
    rule("min_p", &["0"], GREEDY, MOST_PROBABLE),
    rule("seed", &[], GREEDY, MOST_PROBABLE),
    rule("depths", &[], PREFILL, NOTHING_DECODED),
    rule("decode_tokens", &[], PREFILL, NOTHING_DECODED),
    rule("prompts", &[], ("phases", &["decode"]), "no prompt is timed"),
    rule("exact_prompt", &[], ("decode", &[]), "tokens come one at a time, and none of them is a prompt"),
    rule("phases", &["both"], ("decode", &[]), "tokens come one at a time, and none of them is a prompt"),
    rule("decode", &[], NOT_PERPLEXITY, "only the text of --task perplexity is attended one token at a time"),
    rule("delimiter", &[], ONE_TEXT, "there is no continuation behind a delimiter"),
    rule("shots", &["0"], ONE_TEXT, "only choices, schema and last-word are asked with solved examples"),
    rule("shots_from", &[], ONE_TEXT, "only choices, schema and last-word are asked with solved examples"),
    rule("shots_from", &[], ("shots", &["0"]), "no example is asked for"),
    rule("profile", &["none"], ("kernels", &["dense", "delta"]), "only hybrid kernels are given the profile"),
];

/// Refuses options that were given and have no effect.
///
/// # Errors
/// For the first of them, with the option that makes it so.
pub(super) fn check(given: &ArgMatches) -> anyhow::Result<()> {
    if let Some((_, given)) = given.subcommand() {
        return check(given);
    }
    for Rule { option, harmless, beside: (other, values), because } in RULES {
        if !is_given(given, option) || values_of(given, option).iter().any(|it| is_one_of(it, harmless)) {
            continue;
        }
        let others = values_of(given, other);
        let idle = match values.is_empty() {
            true => is_given(given, other),
            // Of a list, all must be such.
            false => !others.is_empty() && others.iter().all(|it| is_one_of(kind(other, it), values)),
        };
        ensure!(
            !idle,
            "{}: has no effect with {}: {because}; leave it out",
            name(option),
            written(other, &others.join(","))
        );
    }
    Ok(())
}

/// Whether it stands on the command line.
fn is_given(given: &ArgMatches, option: &str) -> bool {
    // An option that this command does not have is not given.
    matches!(given.try_contains_id(option), Ok(true))
        && given.value_source(option) == Some(ValueSource::CommandLine)
}

/// Its values as they were written, or its default.
fn values_of(given: &ArgMatches, option: &str) -> Vec<String> {
    let values = given.try_get_raw(option).ok().flatten().into_iter().flatten();
    // A list is one text here, whether it was split or not.
    let values: Vec<String> = values.map(|value| value.to_string_lossy().into_owned()).collect();
    values.iter().flat_map(|value| value.split(',')).map(str::to_owned).collect()
}

/// Of a kernel with its store, as `bench` has it, the kernel.
fn kind<'v>(option: &str, value: &'v str) -> &'v str {
    if option == "kernels" { value.split('-').next().unwrap_or(value) } else { value }
}

/// Whether it is one of these, as a text or as a number.
fn is_one_of(value: &str, values: &[&str]) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    values.iter().any(|it| *it == value || number(it).is_some_and(|it| number(value) == Some(it)))
}

/// An option as it was given. A flag has the value `true`, which nobody wrote.
fn written(option: &str, value: &str) -> String {
    if value == "true" { name(option) } else { format!("{} {value}", name(option)) }
}

/// `--skip-margin` for `skip_margin`.
fn name(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, ArgAction, Command};

    use super::*;

    /// All options of the table, as some command might have them.
    fn command() -> Command {
        let option = |id: &'static str| Arg::new(id).long(&*id.replace('_', "-").leak());
        let mut command = Command::new("program")
            .arg(option("kernel").default_value("hybrid"))
            .arg(option("kernels").value_delimiter(',').default_value("dense-f16,hybrid-f16"))
            .arg(option("temperature").default_value("0.7"))
            .arg(option("top_k").default_value("40"))
            .arg(option("top_p"))
            .arg(option("min_p"))
            .arg(option("task"))
            .arg(option("delimiter").default_value(" "))
            .arg(option("kv"));
        for flag in ["paper", "decode"] {
            command = command.arg(option(flag).action(ArgAction::SetTrue));
        }
        for name in [
            "profile",
            "theta",
            "target_sparsity",
            "window",
            "sinks",
            "skip_margin",
            "exact_prompt",
            "phases",
            "seed",
            "depths",
            "decode_tokens",
            "prompts",
            "shots",
            "shots_from",
        ] {
            command = command.arg(option(name));
        }
        command
    }

    fn checked(args: &[String]) -> Result<(), String> {
        let args = std::iter::once("program".to_owned()).chain(args.iter().cloned());
        let given = command().try_get_matches_from(args).unwrap();
        check(&given).map_err(|error| error.to_string())
    }

    fn with(option: &str, value: &str) -> Vec<String> {
        match option {
            "paper" | "decode" => vec![name(option)],
            _ => vec![name(option), value.to_owned()],
        }
    }

    #[test]
    fn every_rule_names_both_options_and_lets_harmless_values_pass() {
        for Rule { option, harmless, beside: (other, values), because } in RULES {
            let values = if values.is_empty() { &["0.5"] } else { *values };
            for value in values {
                let beside = with(other, value);
                let error = checked(&[with(option, "7"), beside.clone()].concat()).unwrap_err();
                let start = format!("{}: has no effect with {}: ", name(option), beside.join(" "));
                assert!(error.starts_with(&start) && error.contains(because), "{error}");
                for harmless in *harmless {
                    checked(&[with(option, harmless), beside.clone()].concat()).unwrap();
                }
                // Defaults are nobody's wish.
                checked(&beside).unwrap();
            }
            checked(&with(option, "7")).unwrap();
        }
    }

    #[test]
    fn numbers_are_compared_as_numbers_and_lists_whole() {
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(checked(&args("--temperature 0.0 --top-k 5")).is_err());
        checked(&args("--temperature 0.0 --top-p 1.0")).unwrap();
        assert!(checked(&args("--kernels dense-f16,dense-int8 --profile x")).is_err());
        checked(&args("--kernels dense-f16,hybrid-int8 --profile x")).unwrap();
    }
}
