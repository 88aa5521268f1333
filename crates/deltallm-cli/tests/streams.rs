//! Streams that are closed or full: an end, or an error, and no panic.
#![cfg(unix)]

#[allow(dead_code, reason = "the others use the rest")]
mod common;

use std::fs::OpenOptions;
use std::io::pipe;
use std::process::{Output, Stdio};

use common::{command, file, path};

/// A pipe that nobody reads from.
fn left() -> Stdio {
    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

/// Where a report goes.
fn report_folder() -> String {
    path("streams-report")
}

/// Commands that print to both streams.
fn commands() -> Vec<(&'static str, Vec<String>)> {
    let text = file("streams.txt", include_bytes!("../assets/grimm.txt"));
    let strings = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
    vec![
        ("generate", strings(&["--prompt", "Once upon a time", "--max-tokens", "4", "--json", "--verbose"])),
        (
            "evaluate",
            strings(&["--task", "perplexity", "--data", &text, "--context", "64", "--limit", "1", "--json"]),
        ),
        (
            "calibrate",
            strings(&[
                "--text",
                &text,
                "--sparsity",
                "0.5",
                "--skip-margin",
                "off",
                "--context",
                "128",
                "--tokens",
                "128",
                "--held-out-tokens",
                "128",
                "--out",
                &path("streams.json"),
                "--json",
            ]),
        ),
        (
            "report",
            strings(&[
                "--text",
                &text,
                "--out",
                &report_folder(),
                "--context",
                "128",
                "--windows",
                "1",
                "--json",
            ]),
        ),
        ("bench", strings(&["--n", "8", "--decode-tokens", "1", "--repetitions", "1", "--json"])),
        ("inspect", strings(&["--json"])),
        ("completions", strings(&["bash"])),
        ("man", Vec::new()),
        ("generate", strings(&["--help"])),
    ]
}

fn run(name: &str, args: &[String], stdout: Stdio, stderr: Stdio) -> Output {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    command(name, &args).stdout(stdout).stderr(stderr).output().expect("the program starts")
}

#[test]
fn a_reader_of_stdout_who_leaves_ends_a_command_quietly() {
    for (name, args) in commands() {
        let output = run(name, &args, left(), Stdio::piped());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !stderr.contains("error") && !stderr.contains("panic"),
            "{name}: {stderr}"
        );
    }
}

#[test]
fn a_report_is_written_whole_before_anything_is_said() {
    let _ = std::fs::remove_dir_all(report_folder());
    let (name, args) = commands().into_iter().find(|(name, _)| *name == "report").expect("a report");
    assert!(run(name, &args, left(), Stdio::piped()).status.success());
    for file in ["pairs.png", "report.html", "report.json"] {
        assert!(std::path::Path::new(&report_folder()).join(file).exists(), "{file}");
    }
}

#[test]
fn a_full_stdout_is_an_error_that_names_it() {
    if !std::path::Path::new("/dev/full").exists() {
        println!("skipped: there is no /dev/full");
        return;
    }
    for (name, args) in commands() {
        let output = run(name, &args, full(), Stdio::piped());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}: {stderr}");
        assert!(stderr.contains("error: stdout: cannot write"), "{name}: {stderr}");
    }
}

#[test]
fn a_stderr_that_is_closed_or_full_changes_nothing() {
    let mut streams: Vec<fn() -> Stdio> = vec![left];
    if std::path::Path::new("/dev/full").exists() {
        streams.push(full);
    }
    for stderr in streams {
        for (name, args) in commands() {
            let output = run(name, &args, Stdio::piped(), stderr());
            assert!(output.status.success(), "{name}: {:?}", output.status);
            assert!(name == "calibrate" || !output.stdout.is_empty(), "{name}");
        }
        // Nobody hears the error, but it is one.
        let output = run("generate", &["--max-tokens".into(), "0".into()], Stdio::piped(), stderr());
        assert_eq!(output.status.code(), Some(2));
        let both = run("generate", &["--max-tokens".into(), "2".into()], left(), stderr());
        assert!(both.status.success(), "{:?}", both.status);
    }
}

#[test]
fn an_instruction_set_that_this_machine_lacks_is_an_error_of_the_variable() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let run = |value: &OsStr| {
        let mut command = command("generate", &["--prompt", "A", "--max-tokens", "1"]);
        command.env("DELTALLM_SIMD", value).output().expect("the program starts")
    };
    assert!(run(OsStr::new("")).status.success() && run(OsStr::new("scalar")).status.success());
    for bad in [OsStr::new("sse9"), OsStr::from_bytes(b"avx\xff")] {
        let output = run(bad);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.starts_with("error: DELTALLM_SIMD: expected an instruction set"), "{stderr}");
    }
}
