//! The programs as a user runs them: bad input is one line and exit code 2, good input gives the promised JSON.

mod common;

use common::{assert_refused, file, json, run};
use deltallm::{ModelFingerprint, ThresholdProfile};
use deltallm_examples::LoadedModel;
use serde_json::Value;

#[test]
fn prompt_longer_than_the_context() {
    let prompt = "once upon a time ".repeat(1000);
    assert_refused("generate", &["--prompt", &prompt], &["expected at most 1024", "shorten"]);
}

#[test]
fn empty_prompt() {
    assert_refused("generate", &["--prompt", ""], &["--prompt", "at least one token"]);
}

#[test]
fn no_tokens_wanted() {
    assert_refused("generate", &["--max-tokens", "0"], &["--max-tokens"]);
}

#[test]
fn unknown_kernel() {
    assert_refused("generate", &["--kernel", "sparse"], &["sparse", "dense, delta, hybrid"]);
    assert_refused("generate", &["--compare", "sparse"], &["sparse", "dense"]);
}

#[test]
fn unknown_option() {
    assert_refused("generate", &["--colour"], &["--colour", "--help"]);
}

#[test]
fn unknown_task() {
    let args = ["--data", "x", "--task", "poetry"];
    assert_refused("evaluate", &args, &["poetry", "perplexity, choices, schema, last-word, squad"]);
}

#[test]
fn missing_model() {
    assert_refused("generate", &["--model", "no-such.gguf"], &["no-such.gguf", "tools/fetch-smollm2"]);
}

#[test]
fn not_a_model() {
    let path = file("not-a-model.txt", b"Once upon a time");
    assert_refused("generate", &["--model", &path], &["not a model"]);
}

#[test]
fn bad_attention_settings() {
    for (option, value, expected) in [
        ("--window", "0", "number of keys >= 1"),
        ("--window", "block:2", "SCALE in (0, 1]"),
        ("--window", "wide", "block:SCALE"),
        ("--theta", "-1", "finite number >= 0"),
        ("--theta", "nan", "finite number >= 0"),
        ("--skip-margin", "0", "nats > 0, or off"),
        ("--kv", "compact", "not in this version yet"),
        ("--kv", "f8", "f32, f16 or bf16"),
        ("--sinks", "18446744073709551615", "at most 1024"),
        ("--threads", "0", "1..=1024"),
    ] {
        assert_refused("generate", &[&format!("{option}={value}")], &[option, expected]);
    }
}

#[test]
fn bad_sampling_settings() {
    assert_refused("generate", &["--temperature=-1"], &["temperature", "at least 0", "-1"]);
    assert_refused("generate", &["--top-p", "1.5"], &["top_p", "(0, 1]", "1.5"]);
}

#[test]
fn chat_without_a_template() {
    assert_refused("generate", &["--chat"], &["chat template", "leave --chat out"]);
}

#[test]
fn profile_for_another_model() {
    let profile = ThresholdProfile::new(ModelFingerprint(1), [1, 1, 2], vec![0.5, 0.5]).expect("valid");
    let path = file("another-model.json", &serde_json::to_vec(&profile).expect("JSON"));
    assert_refused("generate", &["--profile", &path], &["expected model", "0000000000000001", "calibrate"]);
}

#[test]
fn profile_that_is_none() {
    let path = file("no-profile.json", b"{}");
    assert_refused("generate", &["--profile", &path], &["--profile", "missing field"]);
    assert_refused("generate", &["--profile", "no-such.json"], &["no-such.json"]);
    assert_refused("generate", &["--profile", &path, "--theta", "1"], &["--theta"]);
}

#[test]
fn bad_text_files() {
    let evaluate = |data: &str, parts: &[&str]| {
        assert_refused("evaluate", &["--task", "perplexity", "--data", data], parts);
    };
    evaluate("no-such.txt", &["no-such.txt", "expected a text file"]);
    evaluate(&file("empty.txt", b""), &["empty file"]);
    evaluate(&file("latin-1.txt", b"\xe9"), &["UTF-8"]);
    evaluate(&file("short.txt", b"Once upon a time"), &["one window of 1024 tokens", "got a text of"]);
}

#[test]
fn bad_context() {
    let text = file("context.txt", b"Once upon a time");
    for context in ["1", "4096"] {
        let args = ["--task", "perplexity", "--data", &text, "--context", context];
        assert_refused("evaluate", &args, &["--context", "2 to 1024", context]);
    }
}

#[test]
fn generate_reports_the_promised_fields() {
    let output = run(
        "generate",
        &["--max-tokens", "6", "--temperature", "0", "--json", "--compare", "dense", "--window", "2"],
    );
    let report = json(&output);
    let stdout = String::from_utf8_lossy(&output.stdout);
    for name in ["prompt_tokens", "prefill_tokens_per_second", "decode_tokens_per_second", "kv_bytes"] {
        assert!(report[name].as_f64().is_some_and(|x| x > 0.0), "{name} in {report}");
    }
    for name in ["zero_fraction", "sparsity", "values_skipped"] {
        assert!(report[name].as_f64().is_some_and(|x| (0.0..=1.0).contains(&x)), "{name} in {report}");
    }
    assert!(report["zero_fraction"].as_f64() > Some(0.0), "{report}");
    assert_eq!(report["kernel"], "hybrid");
    assert_eq!(report["generated_tokens"], 6);
    assert!(report["model"].is_string() && report.get("peak_rss_bytes").is_some());
    assert!(stdout.contains(report["text"].as_str().expect("text")));
    assert_eq!(report["dense"]["kernel"], "dense");
    // Both are rounded up to whole pages of the same size.
    assert_eq!(report["dense"]["kv_bytes"], report["kv_bytes_dense_f16"]);
    assert!(report.get("first_difference").is_some());
}

#[test]
fn without_thresholds_nothing_differs() {
    let args = [
        "--max-tokens",
        "12",
        "--json",
        "--compare",
        "dense",
        "--theta",
        "0",
        "--window",
        "4",
        "--kv",
        "f32",
    ];
    let report = json(&run("generate", &args));
    assert_eq!(report["text"], report["dense"]["text"]);
    assert_eq!(report["first_difference"], Value::Null);
}

#[test]
fn the_thread_count_does_not_change_the_text() {
    let text = |threads| {
        json(&run("generate", &["--max-tokens", "12", "--json", "--threads", threads]))["text"].clone()
    };
    assert_eq!(text("1"), text("3"));
}

#[test]
fn generation_stops_at_the_end_of_the_context() {
    let model = LoadedModel::open(None).expect("the embedded model");
    let mut prompt = "The king had a daughter. ".repeat(140);
    while model.encode(&prompt).expect("tokens").len() > 1020 {
        prompt.pop();
    }
    let report = json(&run("generate", &["--prompt", &prompt, "--json", "--temperature", "0"]));
    let tokens = |name: &str| report[name].as_u64().expect("a number");
    assert_eq!(report["stop"], "context_full", "{report}");
    // The last token needs no position of its own.
    assert_eq!(tokens("prompt_tokens") + tokens("generated_tokens"), 1025);
}

#[test]
fn evaluate_reports_the_promised_fields() {
    let text =
        file("story.txt", "Once upon a time there was a king who had three sons. ".repeat(30).as_bytes());
    let args = ["--task", "perplexity", "--data", &text, "--context", "64", "--limit", "2", "--window", "8"];
    let report = json(&run("evaluate", &[&args[..], &["--json", "--compare", "dense"]].concat()));
    assert_eq!((&report["task"], &report["examples"]), (&"perplexity".into(), &2.into()));
    assert_eq!(report["tokens"], 2 * 63);
    for name in ["perplexity", "kl", "zero_fraction", "sparsity"] {
        assert!(report[name].as_f64().is_some_and(|x| x > 0.0), "{name} in {report}");
    }
    let flips = report["flips"].as_f64().expect("flips");
    let agreement = report["top1_agreement"].as_f64().expect("top1_agreement");
    assert!((agreement - (1.0 - flips / 126.0)).abs() < 1e-12);
    assert!(report["dense"]["perplexity"].as_f64().is_some_and(|x| x > 1.0));
    assert!(report["standard_error"].as_f64().is_some_and(|x| x > 0.0), "{report}");
}
