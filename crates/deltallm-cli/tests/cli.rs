//! The program as a user runs it: bad input is one line and exit code 2, good input gives the promised JSON.

mod common;

use std::path::Path;
use std::process::Output;

use common::{assert_refused, file, json, path, refusal, run};
use deltallm::{AttentionProfile, KernelSpec, ModelFingerprint, ThresholdProfile};
use deltallm_cli::LoadedModel;
use serde_json::Value;

/// A text of some thousand tokens that is the same everywhere.
const LONG_TEXT: &str = include_str!("../assets/grimm.txt");

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
        ("--skip-margin", "0", "nats > 0, Aln+B or Aln+B:L for A ln(keys) + B, or off"),
        ("--kv", "q8", "expected f32, f16, bf16, int8 or compact"),
        ("--kv", "f8", "f32, f16, bf16, int8 or compact"),
        ("--kv", "int4", "expected f32, f16, bf16, int8 or compact"),
        ("--sinks", "4294967295", "at most 1024"),
        ("--window", "4294967295", "at most 1024, the model's context"),
        ("--exact-prompt", "1025", "at most 1024, the model's context"),
    ] {
        assert_refused("generate", &[&format!("{option}={value}")], &[option, expected]);
    }
}

#[test]
fn numbers_that_are_none_are_told_what_is_expected() {
    for (command, option, value, expected) in [
        ("generate", "--threads", "0", "a whole number from 1 to 1024"),
        ("generate", "--max-tokens", "many", "a whole number from 1 to 4294967295"),
        ("generate", "--seed", "-1", "a whole number from 0 to 18446744073709551615"),
        ("generate", "--top-k", "1.5", "a whole number from 0"),
        ("generate", "--sinks", "99999999999999999999", "a whole number from 0"),
        ("generate", "--temperature", "warm", "a number"),
        ("calibrate", "--tokens", "-5", "a whole number from 1"),
        ("evaluate", "--limit", "0", "a whole number from 1"),
        ("report", "--layer", "x", "a whole number from 0"),
        ("bench", "--n", "512,x", "a whole number from 1"),
        ("bench", "--repetitions", "65536", "a whole number from 1 to 65535"),
    ] {
        let line = refusal(command, &[option, value]);
        let got = value.rsplit(',').next().expect("a value");
        let said = format!("invalid value '{got}' for '{option} <");
        assert!(line.contains(&said) && line.contains(&format!("expected {expected}")), "{line}");
    }
}

/// Products of bf16 are for Arm; elsewhere they are refused, with what there is instead.
#[test]
fn precisions_that_are_not_multiplied() {
    assert_refused("generate", &["--precision", "int8"], &["--precision", "expected f32, bf16 or int16"]);
    if cfg!(target_arch = "x86_64") {
        assert_refused(
            "generate",
            &["--precision", "bf16"],
            &["--precision", "instructions for (f32", "got bf16"],
        );
    }
}

#[test]
fn bad_sampling_settings() {
    assert_refused(
        "generate",
        &["--temperature", "-1"],
        &["--temperature: expected", "at least 0", "got -1"],
    );
    assert_refused("generate", &["--top-p", "1.5"], &["--top-p: expected", "(0, 1]", "got 1.5"]);
}

#[test]
fn bad_memory_settings() {
    for bad in ["64", "MiB", "64mb", "1.5GiB", "-1B"] {
        assert_refused("generate", &["--kv-budget", bad], &["--kv-budget", bad, "a whole number and a unit"]);
    }
    let huge = ["--kv-budget", "99999999999GiB"];
    assert_refused("generate", &huge, &["--kv-budget", "expected at most 17179869183 GiB"]);
    let with = |more: &[&str]| refusal("generate", &[&["--kv-budget", "1MB", "--at-limit"], more].concat());
    for gone in ["forget", "raise-thresholds"] {
        assert!(with(&[gone]).contains("[possible values: error, narrow]"));
    }
    assert!(with(&["narrow", "--kv", "int8"]).contains("expected --kv f32, f16 or bf16, got int8"));
    assert_refused("generate", &["--at-limit", "error"], &["--kv-budget"]);
}

#[test]
fn a_prompt_that_cannot_fit_is_refused_before_it_is_read() {
    for kernel in ["dense", "hybrid"] {
        let args = ["--kernel", kernel, "--kv-budget", "100kB"];
        assert_refused("generate", &args, &["--kv-budget", "at least", "6 tokens", "got 100 kB", "shorten"]);
    }
}

/// Bytes of the embedded model's pages in f32: 5 layers, 2 kv heads, keys and values, 64 tokens by 64 channels, and what a page takes beside.
const F32_PAGES: usize = 5 * 2 * 2 * (64 * 64 * 4 + 48);

/// The same in tables of 4 slots.
const DENSE_F32_PAGE: usize = F32_PAGES + 5 * 2 * 2 * 4 * 32;

fn with_budget<'a>(budget: &'a str, more: &[&'a str]) -> Output {
    let args = [
        "--temperature",
        "0",
        "--json",
        "--kernel",
        "dense",
        "--kv",
        "f32",
        "--kv-budget",
        budget,
        "--verbose",
    ];
    run("generate", &[&args[..], more].concat())
}

#[test]
fn a_used_up_budget_ends_the_text_with_the_report_and_exit_code_2() {
    let budget = format!("{DENSE_F32_PAGE}B");
    let output = with_budget(&budget, &["--max-tokens", "100"]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let error = stderr.lines().last().expect("a last line");
    let asked = "layer 0 asked for 16 kB when 0 B were left: the next token takes up to 329 kB in all layers, and 0 B of 331 kB are free";
    for part in ["error: --kv-budget: expected enough for 41 more tokens", asked, "--at-limit"] {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
    assert!(stderr.contains("dense f32") && stderr.contains("budget       "), "plan and report: {stderr}");
    let report: Value = serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON");
    assert!(stdout.contains(report["text"].as_str().expect("text")), "{stdout}");
    assert_eq!(report["stop"], "budget_exhausted");
    let refused = &report["budget_refused"];
    assert_eq!((&refused["layer"], &refused["free_bytes"]), (&0.into(), &0.into()), "{refused}");
    // A page of keys and one of values in each head; there is room in the tables.
    assert_eq!(refused["next_token_bytes"], F32_PAGES);
    assert!(refused["requested_bytes"].as_u64() > refused["available_bytes"].as_u64(), "{refused}");
    assert_eq!((&report["kv_budget_bytes"], &report["at_limit"]), (&DENSE_F32_PAGE.into(), &"error".into()));
    assert_eq!(report["times_relieved"], 0);
    // One page of 64 tokens a head; the last new token is not cached.
    assert_eq!(report["prompt_tokens"].as_u64().zip(report["generated_tokens"].as_u64()), Some((6, 59)));

    let unlimited = json(&run(
        "generate",
        &[
            "--temperature",
            "0",
            "--json",
            "--kernel",
            "dense",
            "--kv",
            "f32",
            "--max-tokens",
            "59",
            "--prompt",
            "Once upon a time there was",
        ],
    ));
    assert_eq!(unlimited["text"], report["text"]);
    assert!(unlimited.get("kv_budget_bytes").is_none() && unlimited.get("times_relieved").is_none());
}

#[test]
fn narrowing_goes_on_where_the_error_stops() {
    // Two pages in f16 take what one does in f32, and what a page takes beside.
    let bytes = DENSE_F32_PAGE + 5 * 2 * 2 * 48;
    let budget = format!("{bytes}B");
    let report = json(&with_budget(&budget, &["--max-tokens", "100", "--at-limit", "narrow"]));
    assert_eq!((&report["generated_tokens"], &report["times_relieved"]), (&100.into(), &1.into()));
    assert_eq!(report["at_limit"], "narrow");
    assert!(report["kv_bytes"].as_u64().is_some_and(|held| held <= bytes as u64), "{report}");
}

/// A kernel inside another one has to be asked for room, and to make some, like any other: with `--phases prefill` the
/// kernel of every layer is made of two.
#[test]
fn a_wrapped_kernel_narrows_at_the_limit_too() {
    let budget = format!("{}B", 5 * DENSE_F32_PAGE / 2);
    for phases in ["both", "prefill"] {
        let tokens = |at_limit: &str| {
            let args = ["--kv", "f32", "--theta", "0.6", "--kv-budget", &budget, "--at-limit", at_limit];
            let more = ["--phases", phases, "--temperature", "0", "--max-tokens", "300", "--json"];
            let output = run("generate", &[&args[..], &more].concat());
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            let report: Value =
                serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON");
            report["generated_tokens"].as_u64().expect("a number")
        };
        let (stopped, narrowed) = (tokens("error"), tokens("narrow"));
        assert!(stopped < 300 && narrowed > stopped + 64, "{phases}: {stopped} tokens, then {narrowed}");
    }
}

/// Two caches hold half as many tokens: what is planned says so, and a prompt that fits in one of them alone is refused.
#[test]
fn a_budget_counts_both_caches_of_a_kernel_that_approximates_prompts_only() {
    let planned = |phases: &str| {
        let args = ["--kv-budget", "2MiB", "--verbose", "--max-tokens", "2", "--phases", phases];
        let output = run("generate", &args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().find(|line| line.trim_start().starts_with("hybrid f16")).expect("a plan");
        line.split_whitespace().rev().nth(1).and_then(|tokens| tokens.parse::<f64>().ok()).expect("tokens")
    };
    let ratio = planned("prefill") / planned("both");
    assert!((0.35..0.65).contains(&ratio), "{ratio}");
    let prompt = "once upon a time ".repeat(40);
    let args = ["--prompt", &prompt, "--max-tokens", "1", "--kv", "f32", "--json"];
    let taken = json(&run("generate", &args))["kv_bytes"].as_u64().expect("bytes");
    let budget = format!("{}B", taken + taken / 4);
    let limited = [&args[..], &["--kv-budget", &budget]].concat();
    assert!(run("generate", &limited).status.success());
    let prefill = [&limited[..], &["--phases", "prefill"]].concat();
    assert_refused("generate", &prefill, &["--kv-budget: expected at least", "shorten the prompt"]);
}

#[test]
fn chat_without_a_template() {
    assert_refused("generate", &["--chat"], &["chat template", "leave --chat out"]);
}

#[test]
fn profile_for_another_model() {
    let thresholds = ThresholdProfile::new(ModelFingerprint(1), [1, 1, 2], vec![0.5, 0.5]).expect("valid");
    let profile = AttentionProfile::new(thresholds.into(), KernelSpec::default()).expect("valid");
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
fn a_profile_edited_by_hand_is_refused() {
    let good = include_str!("../assets/profiles/fairy-tales.json");
    let edit = |name: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        file(name, good.replacen(from, to, 1).as_bytes())
    };
    for (name, from, to, part) in [
        ("negative.json", "\"channels\":[", "\"channels\":[-1,", "finite number >= 0, got -1"),
        ("long.json", "\"channels\":[", "\"channels\":[1,", "expected thresholds = 640, got 641"),
        ("short.json", "\"kv_heads\":2", "\"kv_heads\":1", "expected thresholds = 320, got 640"),
        ("nan.json", "\"channels\":[", "\"channels\":[NaN,", "calibrate has written"),
        ("field.json", "\"window\":", "\"windows\":", "unknown field `windows`"),
        ("window.json", "\"window\":\"64\"", "\"window\":\"0\"", "window: expected a number of keys"),
        // As version 2 wrote it, with a field that version 3 does not have.
        (
            "old.json",
            "\"version\":3,",
            "\"version\":2,\"rule\":{},",
            "version 3, got version 2: make a new one with `calibrate --model",
        ),
        ("torn.json", "\"layers\"", "", "calibrate has written"),
    ] {
        assert_refused("generate", &["--profile", &edit(name, from, to)], &[part]);
    }
    // One threshold, and only its sign.
    let start = good.find("\"channels\":[").expect("thresholds") + "\"channels\":[".len();
    let signed = format!("{}-{}", &good[..start], &good[start..]);
    assert_refused(
        "generate",
        &["--profile", &file("sign.json", signed.as_bytes())],
        &["finite number >= 0"],
    );
}

#[test]
fn policies_reach_the_kernels_and_are_reported() {
    let report = |args: &[&str]| json(&run("generate", &[&["--max-tokens", "2", "--json"], args].concat()));
    let settings = |args: &[&str]| report(args)["settings"].clone();
    assert_eq!(settings(&[])["profile"], "fairy-tales (built in)");
    assert!(settings(&[])["skip_margin"].as_str().is_some_and(|margin| margin.contains("ln")));
    let none = settings(&["--profile", "none"]);
    assert_eq!((&none["target_sparsity"], &none["skip_margin"]), (&Value::from(0.3), &Value::from("6.5")));
    let paper = settings(&["--paper", "--theta", "1"]);
    assert_eq!(
        (&paper["window"], &paper["sinks"], &paper["theta"]),
        (&"block:0.05".into(), &0.into(), &1.0.into())
    );
    let own = settings(&["--target-sparsity", "0.5"]);
    assert_eq!((&own["target_sparsity"], &own["skip_margin"]), (&0.5.into(), &Value::Null));
    for bad in [
        &["--target-sparsity", "1.5"][..],
        &["--target-sparsity", "0.5", "--theta", "1"],
        &["--paper", "--target-sparsity", "0.5"],
        &["--skip-margin", "ln:"],
    ] {
        assert_refused("generate", bad, &["--"]);
    }
}

#[test]
fn calibration_makes_a_profile_that_evaluate_takes() {
    let text = file("calibration.txt", LONG_TEXT.as_bytes());
    let out = path("made.json");
    let args =
        ["--text", &text, "--tokens", "512", "--held-out-tokens", "256", "--context", "256", "--out", &out];
    let report = json(&run("calibrate", &[&args[..], &["--sparsity", "0.5", "--json"]].concat()));
    assert!((report["zero_fraction"].as_f64().expect("a number") - 0.5).abs() < 0.01, "{report}");
    assert!(report["held_out"]["kl"].as_f64().is_some_and(|kl| kl > 0.0 && kl < 0.5), "{report}");
    let first = std::fs::read(&out).expect("a profile");
    run("calibrate", &[&args[..], &["--sparsity", "0.5", "--threads", "1"]].concat());
    assert!(first == std::fs::read(&out).expect("a profile"), "the same on one thread as on all");
    let args = [
        "--task",
        "perplexity",
        "--data",
        &text,
        "--context",
        "256",
        "--limit",
        "1",
        "--profile",
        &out,
        "--json",
    ];
    assert_eq!(json(&run("evaluate", &args))["settings"]["profile"], out.as_str());
}

#[test]
fn a_profile_is_measured_at_every_length_and_says_so_beyond_them() {
    let text = file("lengths.txt", LONG_TEXT.as_bytes());
    let out = path("lengths.json");
    let args =
        ["--text", &text, "--out", &out, "--tokens", "512", "--held-out-tokens", "256", "--max-kl", "0.05"];
    let output =
        run("calibrate", &[&args[..], &["--context", "256,128", "--exact-prompt", "0", "--json"]].concat());
    let report = json(&output);
    let number = |value: &Value| value.as_f64().expect("a number");
    // What it was chosen by keeps a part of the limit free, which is what was asked for all the same.
    assert_eq!((&report["context"], &report["goal"]["kl"]), (&256.into(), &0.05.into()), "{report}");
    assert!(number(&report["held_out"]["kl"]) <= 0.75 * 0.05, "{report}");
    let verified = report["verified"].as_array().expect("lengths");
    assert_eq!(verified.iter().map(|at| at["context"].as_u64()).collect::<Vec<_>>(), [Some(128), Some(256)]);
    for at in verified {
        assert_eq!((&at["unseen"], at["cost"]["tokens"].as_u64() > Some(200)), (&true.into(), true), "{at}");
    }
    assert!(number(&verified[0]["cost"]["kl"]) < number(&verified[1]["cost"]["kl"]), "{report}");
    assert!(number(&verified[1]["cost"]["kl"]) <= 0.05, "the limit holds on other text: {report}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("verified     at ").count(), 2, "{said}");
    let profile = std::fs::read_to_string(&out).expect("a profile");
    let profile: Value = serde_json::from_str(&profile).expect("JSON");
    assert_eq!(profile["provenance"]["verified"], report["verified"]);

    let evaluate = |context: &str| {
        let args = ["--task", "perplexity", "--data", &text, "--limit", "1", "--profile", &out, "--json"];
        let output = run("evaluate", &[&args[..], &["--context", context]].concat());
        let said =
            String::from_utf8_lossy(&output.stderr).matches("texts of up to 256 tokens; at 300").count();
        (json(&output), said)
    };
    let ((within, quiet), (beyond, said)) = (evaluate("256"), evaluate("300"));
    assert_eq!((&within["beyond_profile"], quiet), (&false.into(), 0));
    assert_eq!((&beyond["beyond_profile"], said), (&true.into(), 1));
    assert_eq!(beyond["settings"]["profile_tokens"], 256);
    let prompt = &LONG_TEXT[..2500];
    let output = run("generate", &["--prompt", prompt, "--max-tokens", "2", "--profile", &out, "--json"]);
    assert_eq!(json(&output)["beyond_profile"], true);
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("texts of up to 256 tokens").count(), 1);
}

#[test]
fn calibration_takes_the_longest_windows_that_fit() {
    let text = file("longest.txt", LONG_TEXT.as_bytes());
    let context = |more: &[&str]| {
        let out = path("longest.json");
        let args = ["--text", &text, "--out", &out, "--sparsity", "0.5", "--skip-margin", "off", "--json"];
        json(&run("calibrate", &[&args[..], more].concat()))["context"].as_u64()
    };
    assert_eq!(context(&["--tokens", "600", "--held-out-tokens", "300"]), Some(300));
    assert_eq!(context(&["--tokens", "200", "--held-out-tokens", "300"]), Some(200));
}

#[test]
fn bad_calibrations_are_refused_and_write_nothing() {
    let text = file("calibration-2.txt", LONG_TEXT.as_bytes());
    let out = path("never-made.json");
    let good =
        ["--text", &text, "--context", "256", "--tokens", "256", "--held-out-tokens", "256", "--out", &out];
    let with =
        |more: &[&str], parts: &[&str]| assert_refused("calibrate", &[&good[..], more].concat(), parts);
    with(&[], &["--sparsity", "--max-kl"]);
    with(&["--sparsity", "1"], &["expected a number >= 0 and < 1"]);
    with(&["--max-kl", "0"], &["nats > 0"]);
    for tiny in ["1e-12", "1e-300"] {
        with(
            &["--max-kl", tiny],
            &["--max-kl: expected more than 0.0", &format!("got {tiny}"), "zero fraction of 0.05"],
        );
    }
    with(
        &["--sparsity", "0.5", "--window", "4294967295"],
        &["--window", "context of 1024", "got 4294967299"],
    );
    with(&["--sparsity", "0.5", "--exact-prompt", "1025"], &["--exact-prompt", "at most 1024", "got 1025"]);
    with(&["--sparsity", "0.5", "--max-kl", "1"], &["--sparsity", "cannot be used with", "--max-kl"]);
    let other = |text: &str, out: &str, more: &[&str], parts: &[&str]| {
        let args = ["--text", text, "--out", out, "--sparsity", "0.5"];
        assert_refused("calibrate", &[&args[..], more].concat(), parts);
    };
    other("no-such.txt", &out, &[], &["--text no-such.txt"]);
    other(&file("nothing.txt", b""), &out, &[], &["empty file"]);
    other(&file("tiny.txt", b"Once upon a time"), &out, &[], &["windows of 1024 tokens", "longer text"]);
    other(&text, "no/such/folder/p.json", &[], &["--out no/such/folder/p.json"]);
    if cfg!(unix) {
        other(&text, "/dev/null", &[], &["--out /dev/null: expected a file"]);
    }
    other(&text, &out, &["--context", "60"], &["--context: expected 70"]);
    other(&text, &out, &["--tokens", "10"], &["--tokens: expected at least one window"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn bad_text_files() {
    let evaluate = |data: &str, parts: &[&str]| {
        assert_refused("evaluate", &["--task", "perplexity", "--data", data], parts);
    };
    evaluate("no-such.txt", &["no-such.txt", "expected a text file"]);
    evaluate(&file("empty.txt", b""), &["empty file"]);
    evaluate(&file("latin-1.txt", b"\xe9"), &["UTF-8"]);
    if cfg!(unix) {
        evaluate("/dev/zero", &["--data /dev/zero", "at most 268435456 bytes, got more"]);
    }
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
    assert!(report["weights_bytes"].as_u64() > Some(0) && report["loading_seconds"].as_f64() > Some(0.0));
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
fn a_text_that_ended_early_is_identical_as_far_as_it_goes() {
    let args =
        ["--prompt", "Once upon a time", "--max-tokens", "200", "--compare", "dense", "--temperature", "0"];
    let output =
        run("generate", &[&args[..], &["--kv-budget", "400kB", "--theta", "0", "--kv", "f32"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("tokens that both have") && !stderr.contains("times"), "{stderr}");
}

#[test]
fn prompts_may_begin_with_a_dash() {
    let report = json(&run("generate", &["--prompt=-- he said", "--max-tokens", "1", "--json"]));
    assert_eq!(report["generated_tokens"], 1);
}

#[test]
fn prompt_lookup_wants_packed_weights() {
    let args = ["--prompt-lookup", "--linear", "f32"];
    assert_refused("generate", &args, &["--prompt-lookup: has no effect", "--linear packed"]);
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
    let args = ["--task", "perplexity", "--data", &text, "--context", "64", "--limit", "2"];
    let args = [&args[..], &["--window", "8", "--exact-prompt", "0"]].concat();
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

#[test]
fn a_text_that_is_guessed_is_the_same() {
    let text: String =
        include_str!("../assets/golden-bird.txt").chars().take(800).collect::<String>().repeat(2);
    let generate = |more: &[&str]| {
        let args = ["--prompt", &text, "--max-tokens", "60", "--temperature", "0", "--json"];
        json(&run("generate", &[&args, more].concat()))
    };
    let (alone, guessed) = (generate(&[]), generate(&["--prompt-lookup"]));
    assert_eq!(alone["text"], guessed["text"]);
    assert_eq!(alone["drafted_tokens"], 0);
    assert!(guessed["accepted_tokens"].as_u64() > Some(9), "{guessed}");
}

#[test]
fn a_prompt_that_has_been_read_is_not_read_again() {
    let folder = path("prompt-cache");
    let _ = std::fs::remove_dir_all(&folder);
    let text: String = LONG_TEXT.chars().take(2500).collect();
    let generate = |prompt: &str, more: &[&str]| {
        let args = ["--prompt", prompt, "--max-tokens", "8", "--temperature", "0", "--json"];
        json(&run("generate", &[&args, more].concat()))
    };
    let number = |of: &Value, name: &str| of[name].as_u64().unwrap();
    let alone = generate(&text, &[]);
    let tokens = number(&alone, "prompt_tokens");
    assert!(tokens > 512, "{tokens}");
    let kept = ["--prompt-cache", &folder];
    for found in [0, tokens] {
        let run = generate(&text, &kept);
        assert_eq!((number(&run, "prompt_tokens_found"), &run["text"]), (found, &alone["text"]));
    }
    // What has not read its prompt is no match for what has.
    let args = ["--prompt", &text, "--max-tokens", "2", "--compare", "dense"];
    for (more, timed) in [(&kept[..], false), (&[], true)] {
        let output = run("generate", &[&args[..], more].concat());
        let line = String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default().to_owned();
        assert!(output.status.success() && line.contains("text identical"), "{line}");
        assert_eq!(line.contains("attention"), timed, "{line}");
    }
    // The last whole call of 512 tokens.
    let longer = format!("{text} and so");
    let run = generate(&longer, &kept);
    assert_eq!((number(&run, "prompt_tokens_found"), &run["text"]), (512, &generate(&longer, &[])["text"]));

    // Weights that are multiplied otherwise are another model.
    let floats = generate(&text, &[&kept[..], &["--linear", "f32"]].concat());
    assert_eq!(number(&floats, "prompt_tokens_found"), 0);

    let narrow = ["--prompt-cache", &folder, "--kv-budget", "1GiB", "--at-limit", "narrow", "--kv", "f16"];
    assert_refused("generate", &narrow, &["--prompt-cache", "--at-limit error"]);
    let occupied = file("occupied.txt", b"a file");
    assert_refused("generate", &["--prompt-cache", &occupied], &["--prompt-cache", "occupied.txt"]);
    assert_refused("generate", &["--prompt-cache-limit", "1MiB"], &["--prompt-cache"]);
}
