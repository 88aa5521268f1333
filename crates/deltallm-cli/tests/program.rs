//! The program as a whole: the first run, settings without effect, folders, `inspect`, `bench`, completions and man pages.

mod common;

use common::{assert_refused, file, json, path, run};
use serde_json::Value;

fn stderr(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn the_first_run_compares_and_says_so_in_one_line() {
    let output = run("generate", &["--json"]);
    let said = stderr(&output);
    let lines: Vec<_> = said.lines().filter(|line| !line.is_empty()).collect();
    let [line] = lines[..] else { panic!("one line: {said}") };
    for part in ["cache ", " % of f16; attention ", " dense; text identical "] {
        assert!(line.contains(part), "{line}");
    }
    let report = json(&output);
    assert!(report["prompt_tokens"].as_u64() > Some(600), "{report}");
    assert_eq!(
        (&report["settings"]["kv"], &report["dense"]["settings"]["kv"]),
        (&"compact".into(), &"f16".into())
    );
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).expect("a number");
    assert!(number("/kv_bytes") < 0.5 * number("/kv_bytes_dense_f16"), "{report}");
    assert!(number("/attention_seconds") > 0.0 && number("/dense/attention_seconds") > 0.0, "{report}");
    // The text of the comparison is not shown.
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains(report["text"].as_str().expect("text")) && !stdout.contains("==="), "{stdout}");
}

#[test]
fn the_rest_is_said_with_verbose() {
    let args = ["--prompt", "Once upon a time", "--max-tokens", "5"];
    let short = stderr(&run("generate", &args));
    assert!(
        short.contains("cache ") && short.contains("prompt at ") && !short.contains("kernel "),
        "{short}"
    );
    let long = stderr(&run("generate", &[&args[..], &["--verbose"]].concat()));
    for part in ["model  ", "kernel  ", "sparsity  ", "attention  ", "cache  "] {
        assert!(long.contains(part), "{part} in {long}");
    }
}

/// The table of rules has tests of its own; here, that commands obey it.
#[test]
fn settings_without_effect_are_refused_by_name() {
    for (command, args, parts) in [
        ("generate", &["--kernel", "dense", "--theta", "1"][..], ["--theta", "--kernel dense"]),
        ("generate", &["--kernel", "delta", "--sinks", "4"], ["--sinks", "--kernel delta"]),
        ("generate", &["--kv", "int8", "--target-sparsity", "0.5"], ["--target-sparsity", "--kv int8"]),
        ("generate", &["--temperature", "0", "--top-k", "5"], ["--top-k", "--temperature 0"]),
        ("generate", &["--temperature", "0", "--seed", "3"], ["--seed", "--temperature 0"]),
        ("generate", &["--profile", "x", "--theta", "1"], ["--profile", "--theta 1"]),
        ("generate", &["--profile", "x", "--paper"], ["--profile", "--paper"]),
        ("bench", &["--phases", "prefill", "--depths", "128"], ["--depths", "--phases prefill"]),
        ("bench", &["--phases", "prefill", "--decode-tokens", "9"], ["--decode-tokens", "--phases prefill"]),
        ("bench", &["--phases", "decode", "--prompts", "128"], ["--prompts", "--phases decode"]),
        ("evaluate", &["--task", "squad", "--data", "x", "--decode"], ["--decode", "--task squad"]),
        (
            "evaluate",
            &["--task", "perplexity", "--data", "x", "--delimiter", ""],
            ["--delimiter", "--task perplexity"],
        ),
        (
            "bench",
            &["--kernels", "dense-f16,dense-int8", "--profile", "x"],
            ["--profile", "--kernels dense-f16,dense-int8"],
        ),
    ] {
        assert_refused(command, args, &[parts[0], "has no effect with", parts[1], "leave it out"]);
    }
    // What says "off" is true beside anything.
    let args = [
        "--kernel",
        "dense",
        "--skip-margin",
        "off",
        "--profile",
        "none",
        "--temperature",
        "0",
        "--top-k",
        "0",
    ];
    stderr(&run("generate", &[&args[..], &["--max-tokens", "1"]].concat()));
}

#[test]
fn no_profile_goes_with_any_thresholds() {
    for thresholds in [&["--theta", "1"][..], &["--paper"], &["--target-sparsity", "0.5"]] {
        let args = ["--profile", "none", "--max-tokens", "1", "--prompt", "A"];
        stderr(&run("generate", &[&args[..], thresholds].concat()));
    }
}

#[test]
fn dense_attention_is_not_compared_with_itself() {
    let same = ["--kernel", "dense", "--compare", "dense"];
    assert_refused("generate", &same, &["--compare dense", "got the same, dense: cache f16"]);
    let data = file("same.txt", "Once upon a time. ".repeat(20).as_bytes());
    let task = ["--task", "perplexity", "--data", &data, "--context", "32", "--limit", "1"];
    assert_refused("evaluate", &[&task[..], &same].concat(), &["--compare dense"]);
    // In another store it is not the same.
    let report = json(&run("evaluate", &[&task[..], &same, &["--kv", "int8", "--json"]].concat()));
    assert!(report["kl"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn help_and_tables_say_nothing_twice_and_no_value_that_is_none() {
    let output = run("generate", &["--help"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(!help.contains("packed: Packed") && !help.contains("[possible values: packed"), "{help}");
    // One token alone has no standard error.
    let data = file("one.txt", b"Once upon a time there was");
    let args =
        ["--task", "perplexity", "--data", &data, "--context", "2", "--limit", "1", "--compare", "dense"];
    let said = stderr(&run("evaluate", &args));
    assert!(!said.contains("NaN") && said.contains("over 1 tokens"), "{said}");
}

#[test]
fn a_folder_with_one_model_file_is_that_file() {
    let folder = path("one-model");
    std::fs::create_dir_all(&folder).expect("the target directory is writable");
    let model = include_bytes!("../assets/bitnet-tiny.gguf");
    file("one-model/a.gguf", model);
    let _ = std::fs::remove_file(path("one-model/b.gguf"));
    assert_eq!(json(&run("inspect", &["--model", &folder, "--json"]))["model"], "a");
    file("one-model/b.gguf", model);
    for command in ["inspect", "generate"] {
        assert_refused(command, &["--model", &folder], &["one GGUF file, got 2: a.gguf, b.gguf", "name one"]);
    }
}

#[test]
fn inspect_says_what_a_file_holds_and_what_caches_take() {
    let report = json(&run("inspect", &["--json"]));
    assert_eq!((&report["model"], &report["architecture"]), (&"fairy-tales".into(), &"llama".into()));
    for (field, expected) in
        [("layers", 5), ("heads", 4), ("kv_heads", 2), ("head_dim", 64), ("context_length", 1024)]
    {
        assert_eq!(report[field], expected, "{field}");
    }
    assert_eq!(report["tokenizer"]["chat_template"], false);
    let tensors = report["tensors"].as_array().expect("tensors");
    let bytes: u64 = tensors.iter().filter_map(|tensors| tensors["bytes"].as_u64()).sum();
    assert!(tensors[0]["type"] == "Q8_0" && (3_600_000..3_765_280).contains(&bytes), "{report}");
    let store = |kernel: &str, kv: &str| {
        let stores = report["stores"].as_array().expect("stores");
        stores.iter().find(|store| store["kernel"] == kernel && store["kv"] == kv).cloned()
    };
    // What a dense cache takes is known exactly, and what generate reports.
    let dense = store("dense", "f16").expect("a store");
    assert_eq!((&dense["share_of_dense_f16"], &dense["bytes"][0]["tokens"]), (&1.0.into(), &1024.into()));
    assert!(store("dense", "compact").is_none() && store("delta", "int8").is_none());
    let compact = store("hybrid", "compact").expect("a store");
    assert!(compact["share_of_dense_f16"].as_f64() < Some(0.45), "{report}");

    let missing = ["--model", "no-such.gguf"];
    assert_refused("inspect", &missing, &["no-such.gguf", "tools/fetch-smollm2"]);
    let shown = String::from_utf8(run("inspect", &[]).stdout).expect("UTF-8");
    assert!(shown.contains("hybrid compact") && shown.contains("without a chat template"), "{shown}");
}

/// What is planned is what a run takes.
#[test]
fn a_cache_is_smaller_than_f16_from_where_inspect_says() {
    let report = json(&run("inspect", &["--json"]));
    let stores = report["stores"].as_array().expect("a list");
    let store = |kernel: &str, kv: &str| {
        stores.iter().find(|store| store["kernel"] == kernel && store["kv"] == kv).expect("this store")
    };
    assert!(["f32", "f16"].iter().all(|kv| store("dense", kv)["smaller_than_f16_from"].is_null()));
    let from = store("hybrid", "compact")["smaller_than_f16_from"].as_u64().expect("a length");
    // Everything is in f16 at first.
    assert_eq!(from, 192);
    // A short run takes as much, a long one much less; a float store takes more at first, and says why.
    let run = |kv: &str, tokens: u64| {
        let args =
            ["--kv", kv, "--prompt", "A", "--temperature", "1.5", "--seed", "3", "--verbose", "--json"];
        let output = self::run("generate", &[&args[..], &["--max-tokens", &tokens.to_string()]].concat());
        let report = json(&output);
        let share = report["kv_bytes"].as_f64().unwrap() / report["kv_bytes_dense_f16"].as_f64().unwrap();
        (share, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let ((early, _), (late, said)) = (run("compact", 40), run("compact", 700));
    assert!(early == 1.0 && late < 0.8, "{early} {late}");
    assert!(!said.contains("says from which length on it is less"), "{said}");
    let (float, said) = run("f16", 40);
    assert!(float > 1.0 && said.contains("the exact window is held beside its coded keys"), "{float} {said}");
}

#[test]
fn inspect_plans_the_bytes_that_a_run_takes() {
    let report = json(&run("inspect", &["--json"]));
    let run = json(&run("generate", &["--json", "--max-tokens", "40"]));
    let tokens = run["prompt_tokens"].as_f64().expect("a number") + 39.0;
    let stores = report["stores"].as_array().expect("stores");
    let compact = stores.iter().find(|store| store["kernel"] == "hybrid" && store["kv"] == "compact");
    let planned = compact.and_then(|store| store["bytes_per_token"].as_f64()).expect("a number");
    let ratio = run["kv_bytes"].as_f64().expect("a number") / tokens / planned;
    assert!((0.8..1.25).contains(&ratio), "{ratio}");
}

#[test]
fn bench_times_the_kernels_in_turns() {
    let args = ["--n", "40,90", "--decode-tokens", "3", "--repetitions", "2", "--json"];
    let report = json(&run("bench", &args));
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2 * 2 * 3, "{report}");
    for row in rows {
        assert_eq!(row["round_ms"].as_array().map(Vec::len), Some(2), "{row}");
        assert!(row["tokens_per_second"].as_f64() > Some(0.0) && row["cache_bytes"].is_u64(), "{row}");
    }
    for (field, expected) in [("threads", 1), ("decode_tokens", 3), ("repetitions", 2)] {
        assert_eq!(report[field], expected, "{field}");
    }
    let first = json(&run("bench", &["--first-token", "16", "--kernels", "hybrid-f16", "--json"]));
    assert!(first["first_token_ms"].as_f64() > first["load_ms"].as_f64(), "{first}");
    assert_refused("bench", &["--kernels", "fastest"], &["--kernels", "such as hybrid-compact", "fastest"]);
    let twice = ["--kernels", "dense-f16,hybrid-f16,dense"];
    assert_refused("bench", &twice, &["--kernels", "each kernel once, got dense-f16 twice"]);
    assert_refused("bench", &["--n", "1024"], &["at most 1024", "got 1056"]);
}

#[test]
fn shells_and_man_get_what_they_read() {
    let text = |command: &str, args: &[&str]| {
        let output = run(command, args);
        stderr(&output);
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let completions = text("completions", &[shell]);
        assert!(completions.contains("calibrate") && completions.contains("skip-margin"), "{shell}");
    }
    assert!(text("man", &[]).contains(".TH deltallm"));
    let folder = path("man");
    std::fs::create_dir_all(&folder).expect("the target directory is writable");
    text("man", &["--out", &folder]);
    let page = std::fs::read_to_string(path("man/deltallm-evaluate.1")).expect("a page");
    assert!(page.contains("delimiter"), "{page}");
    assert_refused("man", &["--out", "no/such/folder"], &["no/such/folder"]);
}
