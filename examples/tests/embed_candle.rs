//! candle with our attention chooses the tokens that candle chooses.
#![cfg(feature = "candle")]

mod common;

use std::path::Path;

use common::run;
use serde_json::Value;

#[track_caller]
fn json(output: &std::process::Output) -> Value {
    let stdout = std::str::from_utf8(&output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON")
}

#[track_caller]
fn assert_refused(args: &[&str], parts: &[&str]) {
    let output = run("embed_candle", args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{stderr}");
    assert!(parts.iter().all(|part| stderr.contains(part)), "{parts:?} are not in: {stderr}");
}

fn model() -> Option<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: run tools/fetch-smollm2");
        return None;
    }
    Some(path.to_str().expect("UTF-8").to_owned())
}

#[test]
fn dense_attention_in_candle_s_graph_chooses_candle_s_tokens() {
    let Some(model) = model() else { return };
    let report = json(&run(
        "embed_candle",
        &["--model", &model, "--kernel", "dense", "--kv", "f32", "--max-tokens", "24", "--json"],
    ));
    let [candle, ours] = [0, 1].map(|index| &report["engines"][index]);
    assert_eq!((&candle["engine"], &ours["engine"]), (&"candle".into(), &"candle + dense".into()));
    assert_eq!(candle["tokens"].as_array().map(Vec::len), Some(24), "{report}");
    assert_eq!(candle["tokens"], ours["tokens"]);
    assert!(ours["first_difference"].is_null());
    assert!(ours["text"].as_str().is_some_and(|text| text.contains(' ')), "{report}");
}

#[test]
fn timing_reports_every_engine_at_every_length() {
    let Some(model) = model() else { return };
    let args = ["--model", &model, "--bench", "--lengths", "8,16", "--rounds", "1", "--decoded", "2"];
    let report = json(&run("embed_candle", &args));
    let rows = report["rows"].as_array().expect("rows");
    let names: Vec<_> =
        rows.iter().map(|row| (row["engine"].as_str(), row["prompt_tokens"].as_u64())).collect();
    let engines = ["candle", "candle + dense", "candle + hybrid"];
    let expected: Vec<_> =
        [8, 16].iter().flat_map(|tokens| engines.map(|engine| (Some(engine), Some(*tokens)))).collect();
    assert_eq!(names, expected);
    assert_eq!((&rows[0]["prefill_ratio"], &rows[0]["agreement"]), (&1.0.into(), &1.0.into()));
    assert_eq!(rows[1]["agreement"], 1.0, "{report}");
}

#[test]
fn what_candle_cannot_read_is_refused() {
    assert_refused(&[], &["--model"]);
    assert_refused(&["--model", "no-such.gguf"], &["no-such.gguf", "tools/fetch-smollm2"]);
    assert_refused(&["--model", "fairy-tales"], &["--model", "GGUF file", "tools/fetch-smollm2"]);
    assert_refused(&["--model", "x", "--max-tokens", "0"], &["--max-tokens"]);
}
