//! The examples run, and print what they promise.

mod common;

#[track_caller]
fn stdout(name: &str, args: &[&str]) -> String {
    let output = common::run(name, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The number in front of `unit`.
#[track_caller]
fn number(text: &str, before: &str, unit: &str) -> f64 {
    let start = text.find(before).map(|at| at + before.len()).unwrap_or_else(|| panic!("{before}: {text}"));
    let end = text[start..].find(unit).unwrap_or_else(|| panic!("{unit}: {text}"));
    text[start..start + end].trim().parse().unwrap_or_else(|_| panic!("{before}…{unit}: {text}"))
}

#[test]
fn the_first_run_saves_something() {
    let text = stdout("generate", &[]);
    assert!(text.contains("golden bird") && text.len() > 1000, "{text}");
    assert!(number(&text, "\ncache ", " % of f16") < 50.0, "{text}");
    assert!(number(&text, "for the first ", " of ") > 0.0, "{text}");
}

#[test]
fn a_prompt_of_one_s_own_is_continued() {
    let text = stdout("generate", &["Once upon a time there was a king"]);
    assert!(text.contains("Once upon a time there was a king") && text.contains("text identical"), "{text}");
}

#[test]
fn attention_is_close_to_dense_and_its_cache_smaller() {
    let text = stdout("attention", &[]);
    assert!(number(&text, "by at most ", "\n") < 0.5, "{text}");
    assert!(text.contains("back at 1000 tokens") && text.contains("expected"), "{text}");
    let [ours, dense] = [number(&text, "cache: ", " bytes"), number(&text, "attention's ", "\n")];
    assert!(ours < dense, "{text}");
}

#[test]
fn an_engine_that_is_not_ours_is_calibrated() {
    let text = stdout("calibrate_your_engine", &[]);
    assert!(number(&text, "\nfound: zeros ", ",") > 0.05, "{text}");
    assert!(number(&text, ", KL ", " nats\nlayer 0") <= 0.05, "{text}");
    assert!(text.contains("bytes of JSON"), "{text}");
}

#[cfg(unix)]
#[test]
fn a_reader_who_leaves_ends_an_example_quietly() {
    for name in ["attention", "custom_kernel", "calibrate_your_engine", "generate"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = common::command(name).stdout(writer).output().expect("the example starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{name}: {stderr}");
    }
}

#[test]
fn an_instruction_set_that_does_not_exist_is_an_error_of_the_variable() {
    for name in ["attention", "custom_kernel", "calibrate_your_engine", "generate"] {
        let output = common::command(name).env("DELTALLM_SIMD", "sse9").output().expect("the example starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("DELTALLM_SIMD: expected"), "{name}: {stderr}");
    }
}
