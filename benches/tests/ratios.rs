//! The program as a user runs it.

use std::process::{Command, Output};

use serde_json::Value;

fn ratios(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ratios")).args(args).output().expect("the program starts")
}

#[track_caller]
fn rows(args: &[&str]) -> Vec<Value> {
    let output = ratios(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    let report: Value = serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON");
    for field in ["cpu", "date", "level", "settings"] {
        assert!(report[field].is_string(), "{field}");
    }
    report["rows"].as_array().expect("rows").clone()
}

fn variants<'r>(rows: &'r [Value], phase: &str) -> Vec<&'r str> {
    rows.iter().filter(|row| row["phase"] == phase).filter_map(|row| row["variant"].as_str()).collect()
}

#[test]
fn synthetic_inputs_give_the_promised_rows() {
    let args = ["--shape", "4,2,16", "--layers", "2", "--n", "80", "--repetitions", "2", "--json"];
    let rows = rows(&[&args[..], &["--per-layer"]].concat());
    let expected = [
        "dense-f32",
        "dense-int16",
        "dense-f16-cache",
        "dense-8bit-cache",
        "delta-f32",
        "hybrid-f32",
        "hybrid-int16",
        "hybrid-8bit",
        "compact",
        "compact-int16",
        "candle-flash",
        "candle-matmul",
    ];
    for phase in ["prefill", "decode"] {
        let variants = variants(&rows, phase);
        assert!(expected.iter().all(|name| variants.contains(name)), "{phase}: {variants:?}");
    }
    for row in &rows {
        let (variant, peer) = (&row["variant"], row["variant"].as_str().unwrap().starts_with("candle"));
        assert!(row["input"] == "synthetic 4,2,16" && row["level"].is_string(), "{row}");
        assert_eq!(
            [&row["n"], &row["heads"], &row["kv_heads"], &row["head_dim"], &row["threads"]],
            [80, 4, 2, 16, 1]
        );
        for field in ["median_ms", "ratio_to_dense", "peak_share", "min_ms", "max_ms"] {
            assert!(row[field].as_f64().is_some_and(|x| x > 0.0), "{variant} {field}: {}", row[field]);
        }
        for field in ["zero_fraction", "values_skipped", "bytes_per_token"] {
            assert_eq!(row[field].is_f64(), !peer, "{variant} {field}: {}", row[field]);
        }
        assert_eq!(row["layer_ms"].as_array().map(Vec::len), Some(2));
        let baseline = if row["phase"] == "prefill" { "dense-f32" } else { "dense-f16-cache" };
        assert_eq!(row["ratio_to_dense"] == 1.0, variant == baseline, "{row}");
    }
    let zeros =
        |variant| rows.iter().find(|row| row["variant"] == variant).unwrap()["zero_fraction"].as_f64();
    assert!((zeros("hybrid-f32").unwrap() - 0.6).abs() < 0.02, "the default");
}

#[test]
fn a_model_s_inputs_are_all_its_layers() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/method.md");
    let args =
        ["--text", text, "--windows", "2", "--n", "40,70", "--repetitions", "1", "--threads", "2", "--json"];
    let rows = rows(&[&args[..], &["--variants", "hybrid-f32", "--phases", "decode"]].concat());
    assert_eq!(variants(&rows, "decode"), ["dense-f16-cache", "hybrid-f32", "dense-f16-cache", "hybrid-f32"]);
    assert!(variants(&rows, "prefill").is_empty());
    for row in &rows {
        assert_eq!(row["layer_ms"].as_array().map(Vec::len), Some(5), "the embedded model's");
        assert_eq!(row["threads"], 2);
        assert!(row["input"] == "captured fairy-tales" && row["difference"].is_f64(), "{row}");
    }
}

#[test]
fn layers_of_a_model_are_spread_evenly() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/method.md");
    let args = ["--text", text, "--n", "40", "--repetitions", "1", "--variants", "hybrid-f32", "--json"];
    let run = |layers: &[&str]| rows(&[&args[..], layers].concat());
    let (all, two) = (run(&[]), run(&["--layers", "2"]));
    for (all, two) in all.iter().zip(&two) {
        assert_eq!(two["layer_ms"].as_array().map(Vec::len), Some(2));
        // The second and the fourth of five.
        assert!(two["bytes_per_token"].as_f64() < all["bytes_per_token"].as_f64(), "{two}");
    }
}

#[test]
fn bad_arguments_are_one_line() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (args, part) in [
        (&["--n", "0"][..], "--n"),
        (&["--shape", "4,3,64"], "--shape"),
        (&["--variants", "fastest"], "dense-f32"),
        (&["--phases", "training"], "--phases"),
        (&["--zero-fraction", "1.5"], "expected a number >= 0 and < 1"),
        (&["--model", "x.gguf"], "--text"),
        (&["--text", "no-such.txt"], "no-such.txt"),
        (&["--text", text, "--n", "4096"], "at most 1024"),
        (&["--text", text, "--layers", "6"], "expected at most 5, the model's layers, got 6"),
        (&["--text", text, "--n", "1024", "--windows", "9"], "use a longer text"),
        (&["--text", text, "--shape", "smollm2"], "--shape"),
        (&["--profile", "x.json"], "--text"),
        (&["--torch", "/no/such/python"], "pip install torch"),
    ] {
        let output = ratios(args);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(part), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
