//! The program as a user runs it.

use std::process::{Command, Output};

use serde_json::Value;

const TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/deltallm-cli/assets/grimm.txt");

fn lengths(args: &[&str]) -> Output {
    let program = Command::new(env!("CARGO_BIN_EXE_lengths")).args(["--text", TEXT]).args(args).output();
    program.expect("the program starts")
}

#[track_caller]
fn rows(args: &[&str]) -> Vec<Value> {
    let output = lengths(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn what_has_been_read_of_a_long_text_is_what_a_short_one_gives() {
    let settings = ["--setting", "coded: --theta 0.6 --window 16", "--setting", "compact: --kv compact"];
    let both = rows(&[&["--n", "700,520"], &settings[..]].concat());
    let names: Vec<_> = both.iter().map(|row| (row["tokens"].as_u64(), row["setting"].as_str())).collect();
    let expected = [520, 700].map(|n| ["dense", "coded", "compact"].map(|name| (Some(n), Some(name))));
    assert_eq!(names, expected.concat());
    let short = rows(&[&["--n", "520"], &settings[..]].concat());
    for (a, b) in both.iter().zip(&short) {
        for field in ["perplexity", "kl", "top1_agreement", "cache_bytes"] {
            let (a, b) = (a[field].as_f64().unwrap(), b[field].as_f64().unwrap());
            // The last token of the short text has no next one.
            assert!((a - b).abs() <= 0.02 * b.abs(), "{field}: {a} {b}");
        }
    }
    let coded = &both[4];
    assert!(coded["kl"].as_f64() > Some(0.0) && coded["zero_fraction"].as_f64() > Some(0.1), "{coded}");
    assert_eq!((both[3]["kl"].as_f64(), both[3]["bytes_of_dense"].as_f64()), (Some(0.0), Some(1.0)));
    assert!(both[5]["bytes_of_dense"].as_f64() < Some(0.6), "{}", both[5]);
}

#[test]
fn a_window_is_scored_from_the_token_that_is_asked_for() {
    let loss = |more: &[&str]| {
        let row = rows(&[&["--setting", "coded: --theta 0.6 --window 16"], more].concat()).remove(1);
        row["perplexity"].as_f64().map_or(f64::NAN, f64::ln)
    };
    // Tokens 1 to 349, 350 to 699, and all of them.
    let (first, second) = (loss(&["--n", "350"]), loss(&["--n", "700", "--score-from", "349"]));
    let all = loss(&["--n", "700"]);
    assert!((349.0 * first + 350.0 * second - 699.0 * all).abs() < 0.5, "{first} {second} {all}");
    assert!((first - second).abs() > 1e-3);
}

#[test]
fn wrong_settings_and_lengths_are_refused_in_a_line() {
    for (args, complaint) in [
        (&["--n", "9", "--setting", "--theta 1"][..], "expected NAME: FLAGS"),
        (&["--n", "9", "--setting", "a: --thet 1"], "unexpected argument '--thet'"),
        (
            &["--n", "9", "--setting", "a: --theta 1", "--score-from", "8"],
            "--score-from: expected a token before",
        ),
        (&["--n", "2000", "--setting", "a: --theta 1"], "--n: expected at most 1024"),
    ] {
        let output = lengths(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(complaint), "{error}");
    }
}
