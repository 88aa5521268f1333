//! Running the program.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deltallm"));
    command.arg(name).args(args);
    command
}

pub(crate) fn run(name: &str, args: &[&str]) -> Output {
    command(name, args).output().expect("the program starts")
}

/// Runs a command that must refuse its arguments, and returns the line it says.
#[track_caller]
pub(crate) fn refusal(name: &str, args: &[&str]) -> String {
    let output = run(name, args);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    stderr
}

#[track_caller]
pub(crate) fn assert_refused(name: &str, args: &[&str], parts: &[&str]) {
    let line = refusal(name, args);
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in: {line}");
    }
}

pub(crate) fn path(name: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    path.to_str().expect("UTF-8").to_owned()
}

pub(crate) fn file(name: &str, contents: &[u8]) -> String {
    std::fs::write(path(name), contents).expect("the target directory is writable");
    path(name)
}

pub(crate) fn json(output: &Output) -> Value {
    let stdout = std::str::from_utf8(&output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(stdout.lines().last().expect("a last line")).expect("JSON")
}
