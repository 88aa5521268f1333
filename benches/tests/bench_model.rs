//! The program as a user runs it, and the script that sets llama.cpp beside it.

use std::process::{Command, Output};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/deltallm-cli/assets/fairy-tales.gguf");

fn bench_model(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench-model")).args(args).output().expect("the program starts")
}

#[track_caller]
fn last_line(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = std::str::from_utf8(&output.stdout).expect("UTF-8");
    serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON")
}

#[test]
fn ours_and_candle_s_model_read_the_same_tokens_and_agree() {
    let args = ["--model", MODEL, "--prompts", "100,40", "--depths", "300", "--decode-tokens", "5"];
    let kernels = ["--kernels", "dense,hybrid-compact,candle", "--repetitions", "2", "--json"];
    let report = last_line(&bench_model(&[&args[..], &kernels].concat()));
    assert_eq!([&report["threads"], &report["decode_tokens"], &report["repetitions"]], [1, 5, 2]);
    let rows = report["rows"].as_array().expect("rows");
    let row = |phase: &str, tokens: u64, engine: &str| {
        let found =
            |row: &&Value| row["phase"] == phase && row["tokens"] == tokens && row["engine"] == engine;
        rows.iter().find(found).unwrap_or_else(|| panic!("{phase} {tokens} {engine}"))
    };
    assert_eq!(rows.len(), 9);
    for (phase, tokens, timed) in [("prefill", 40, 40.0), ("prefill", 100, 100.0), ("decode", 300, 5.0)] {
        let dense = row(phase, tokens, "dense-f16");
        for engine in ["dense-f16", "hybrid-compact", "candle"] {
            let row = row(phase, tokens, engine);
            assert_eq!(row["round_ms"].as_array().map(Vec::len), Some(2), "{row}");
            let (speed, ms) =
                (row["tokens_per_second"].as_f64().unwrap(), row["median_ms"].as_f64().unwrap());
            assert!((speed * ms / 1e3 / timed - 1.0).abs() < 1e-9, "{row}");
            assert_eq!(row["cache_bytes"].is_u64(), engine != "candle", "{row}");
            assert_eq!(row["ratio"] == 1.0, engine == "dense-f16", "{row}");
            if engine == "candle" {
                assert_eq!(row["next"], dense["next"], "another model, or other tokens: {row}");
            }
        }
    }
    let bytes = |engine| row("decode", 300, engine)["cache_bytes"].as_u64().unwrap();
    assert!(bytes("hybrid-compact") != bytes("dense-f16"), "the store of the name is the one that runs");
}

#[test]
fn hybrid_attention_takes_the_profile_that_is_named() {
    let short = ["--prompts", "9", "--depths", "9", "--decode-tokens", "1", "--repetitions", "1"];
    let settings = |profile: &[&str]| {
        let kernels = ["--model", MODEL, "--kernels", "dense-f16,hybrid-f16"];
        String::from_utf8(bench_model(&[&kernels[..], &short, profile].concat()).stdout).expect("UTF-8")
    };
    assert!(settings(&[]).contains("hybrid: profile fairy-tales"), "the built-in one");
    assert!(settings(&["--profile", "none"]).contains("hybrid: target 0.3 zeros"));
    let profile =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/deltallm-cli/assets/profiles/fairy-tales.json");
    assert!(settings(&["--profile", profile]).contains("fairy-tales.json"));
}

#[test]
fn the_first_token_of_a_new_process_is_timed_with_its_memory() {
    for kernel in ["hybrid-f16", "candle"] {
        let args = ["--model", MODEL, "--first-token", "32", "--kernels", kernel, "--threads", "2", "--json"];
        let report = last_line(&bench_model(&args));
        assert!(report["engine"] == kernel && report["prompt"] == 32 && report["next"].is_u64(), "{report}");
        let (load, first) = (report["load_ms"].as_f64().unwrap(), report["first_token_ms"].as_f64().unwrap());
        assert!(0.0 < load && load < first, "{report}");
        if cfg!(target_os = "linux") {
            assert!(report["peak_rss_bytes"].as_u64().unwrap() > 1 << 20, "{report}");
        }
    }
}

#[test]
fn bad_arguments_are_one_line() {
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (args, part) in [
        (&["--kernels", "fastest"][..], "such as hybrid-compact"),
        (&["--kernels", "dense-f17", "--prompts", "9", "--depths", "9"], "expected f32, f16"),
        (&["--kernels", "dense-compact", "--prompts", "9", "--depths", "9"], "belongs to hybrid"),
        (&["--kernels", "candle", "--prompts", "9", "--depths", "9"], "--model FILE"),
        (&["--prompts", "0"], "--prompts"),
        (&["--phases", "training"], "--phases"),
        (&["--model", "no-such.gguf"], "no-such.gguf"),
        (&["--profile", "no-such.json", "--prompts", "9", "--depths", "9"], "no-such.json"),
        (&["--prompts", "4096", "--depths", "9"], "at most 1024, the model's context, got 4096"),
        (&["--prompts", "9", "--depths", "1000"], "got 1032"),
        (&["--text", text, "--prompts", "1024", "--depths", "9"], "use a longer text"),
        (&["--first-token", "9"], "expected one kernel, got 3"),
        (&["--first-token", "9", "--depths", "9"], "--depths"),
    ] {
        let output = bench_model(args);
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(part), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

/// `benches/peers/llama_cpp.py`, where there is a Python.
#[cfg(unix)]
mod script {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};

    use super::*;

    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/llama_cpp.py");

    fn script(args: &[&str]) -> Option<Output> {
        let output = Command::new("python3").arg(SCRIPT).args(args).output();
        if output.is_err() {
            println!("skipped: expected python3 on the PATH, found none");
        }
        output.ok()
    }

    /// Puts a program into the folder that does what a script says.
    fn put_program(folder: &Path, name: &str, script: &str) {
        let path = folder.join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A folder as `build` leaves it, with a llama-bench that gives the same answers always.
    fn folder(name: &str) -> PathBuf {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).unwrap();
        let program = r#"#!/bin/sh
case "$*" in
    *"-fa 1 -ctk f16 -ctv f16 --repack 1"*) echo '[{"samples_ts": [300.0, 100.0, 200.0]}]' ;;
    *) echo '[{"samples_ts": [50.0]}]' ;;
esac
"#;
        put_program(&folder, "llama-bench", program);
        let about = r#"{"commit": "abc", "package": "llama-cpp-python 0", "compiler": "GNU 0"}"#;
        fs::write(folder.join("build.json"), about).unwrap();
        folder
    }

    #[test]
    fn every_engine_is_set_beside_llama_cpp_s_best() {
        let folder = folder("llama");
        let args =
            ["run", folder.to_str().unwrap(), "--model", MODEL, "--rounds", "2", "--kernels", "dense-f16"];
        let program =
            ["--bench-model", env!("CARGO_BIN_EXE_bench-model"), "--candle-longest", "40", "--json"];
        let lengths = ["--prompts", "40,80", "--depths", "40", "--memory", "80", "--decode-tokens", "5"];
        let Some(output) = script(&[&args[..], &program, &lengths].concat()) else { return };
        let report = last_line(&output);
        let tests = report["tests"].as_array().expect("tests");
        let kinds: Vec<_> = tests.iter().map(|test| (&test["test"], &test["tokens"])).collect();
        let expected =
            [("prefill", 40), ("prefill", 80), ("decode", 40), ("first token", 32), ("memory", 80)];
        assert!(kinds.iter().zip(expected).all(|(got, expected)| got.0 == expected.0 && got.1 == expected.1));
        assert_eq!(kinds.len(), expected.len());
        for test in tests {
            let rows = test["rows"].as_array().expect("rows");
            assert_eq!(rows.iter().filter(|row| row["best_of_rival"] == true).count(), 1);
            let over = |row: &Value| row["ratios"]["llama.cpp"].as_f64().unwrap();
            assert!(rows[0]["best_of_rival"] == true && over(&rows[0]) == 1.0, "{}", rows[0]);
            let row = |name: &str| rows.iter().find(|row| row["engine"] == name);
            let dense = row("dense-f16").expect("ours");
            assert_eq!(dense["samples"].as_array().map(Vec::len), Some(2), "one for every round");
            let candle = row("candle").map(|row| row["samples"].as_array().unwrap().len());
            assert_eq!(candle, (test["tokens"] != 80 || test["test"] == "memory").then_some(1), "{test}");
            let (ours, ratio) = (dense["median"].as_f64().unwrap(), over(dense));
            if test["unit"] == "tokens/s" {
                assert_eq!(rows[0]["engine"], "llama.cpp, fa 1, f16");
                assert!((ours / 200.0 / ratio - 1.0).abs() < 1e-9, "the median of its samples: {test}");
            } else {
                // Of memory the least is that of the Python that starts them all.
                let least = ratio == 1.0 && test["test"] == "memory";
                assert!(ratio < 1.0 || least, "a script that does nothing is faster and smaller: {test}");
            }
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("| prompt of 40 | llama.cpp, fa 1, f16 | 200 tokens/s | 100..300 | 1.00 |"));
        assert_eq!(stdout.matches("| llama.cpp,").count(), 5, "of llama.cpp only its best: {stdout}");
    }

    #[test]
    fn the_accuracy_of_other_caches_is_read_from_a_report() {
        let folder = folder("accuracy");
        let program = r#"#!/bin/sh
case "$*" in
    *--kl-divergence) printf 'Mean PPL(Q)/PPL(base)         :   1.036819 ±   0.0066\nMean    KLD:   0.036562 ±   0.0011\nSame top p: 88.959 ± 0.693 %%\n' ;;
    *) echo nothing ;;
esac
"#;
        put_program(&folder, "llama-perplexity", program);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/cache_accuracy.py");
        let run = |more: &[&str]| {
            let args = [folder.to_str().unwrap(), "--model", MODEL, "--text", MODEL, "--caches"];
            Command::new("python3").arg(script).args(args).args(more).output()
        };
        let Ok(output) = run(&["q4_0"]) else { return println!("skipped: expected python3, found none") };
        let row = last_line(&output);
        assert_eq!(
            (row["kl"].as_f64(), row["bytes_of_f16"].as_f64()),
            (Some(0.036_562), Some(0.281_25)),
            "{row}"
        );
        let error = String::from_utf8(run(&["q3_0"]).unwrap().stderr).unwrap();
        assert!(error.contains("expected names among f16"), "{error}");
        put_program(&folder, "llama-perplexity", "#!/bin/sh\necho nothing\n");
        let error = String::from_utf8(run(&["q4_0"]).unwrap().stderr).unwrap();
        assert!(error.contains("expected a line 'Mean PPL"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_one_line_that_says_what_to_do() {
        let (empty, folder) = (env!("CARGO_TARGET_TMPDIR"), folder("errors"));
        let folder = folder.to_str().unwrap();
        let program = env!("CARGO_BIN_EXE_bench-model");
        for (args, part) in [
            (&["run", empty][..], "llama_cpp.py build"),
            (&["run", folder, "--bench-model", "no-such"], "cargo build"),
            (&["run", folder, "--bench-model", program, "--model", "no-such"], "tools/fetch-smollm2"),
            (&["run", folder, "--rounds", "0"], "number >= 1"),
            (
                &["run", folder, "--bench-model", program, "--model", MODEL, "--kernels", "fastest"],
                "such as hybrid-compact",
            ),
            (&["measure"], "try --help"),
        ] {
            let Some(output) = script(args) else { return };
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            let errors = stderr.lines().filter(|line| !line.starts_with("round ")).collect::<Vec<_>>();
            assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
            assert!(errors.len() == 1 && errors[0].contains(part), "{args:?}: {stderr}");
        }
        let Some(help) = script(&["run", "--help"]) else { return };
        assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("--candle-rounds"));
    }
}
