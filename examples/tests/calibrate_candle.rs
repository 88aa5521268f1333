//! A model that candle runs is calibrated, and runs with what was found.
#![cfg(feature = "candle")]

mod common;

use std::path::{Path, PathBuf};

use common::run;
use serde_json::Value;

fn asset(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/deltallm-cli/assets").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

fn out(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn the_profile_keeps_the_divergence_and_embed_candle_takes_it() {
    let (model, text, out) = (asset("fairy-tales.gguf"), asset("grimm.txt"), out("calibrate_candle.json"));
    let profile = out.to_str().expect("UTF-8");
    let sizes = ["--tokens", "512", "--held-out-tokens", "256", "--context", "128", "--max-kl", "0.02"];
    let output = run(
        "calibrate_candle",
        &[&["--model", &model, "--text", &text, "--out", profile][..], &sizes[..]].concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(stdout.starts_with(profile) && stdout.contains("layers dense"), "{stdout}");

    let json: Value = serde_json::from_slice(&std::fs::read(&out).expect("a profile")).expect("JSON");
    let found = &json["provenance"];
    assert_eq!((&found["tokens"], &found["context"]), (&512.into(), &128.into()), "{json}");
    let held_out = |field: &str| found["held_out"][field].as_f64().expect("a number");
    assert!(held_out("kl") <= 0.02 && held_out("zero_fraction") > 0.1, "{found}");

    let args = ["--model", &model, "--profile", profile, "--max-tokens", "8", "--json"];
    let output = run("embed_candle", &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn too_little_text_is_refused() {
    let (model, text, out) = (asset("fairy-tales.gguf"), asset("grimm.txt"), out("never.json"));
    let all = ["--model", &model, "--text", &text, "--out", out.to_str().expect("UTF-8")];
    for (sizes, part) in [
        (["--tokens", "127", "--context", "128"], "--tokens: expected at least one window of 128 tokens"),
        (["--tokens", "900000", "--context", "128"], "use a longer text"),
    ] {
        let output = run("calibrate_candle", &[&all[..], &sizes[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(part), "{stderr}");
    }
    assert!(!out.exists());
}
