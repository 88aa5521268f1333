//! Running the examples.

use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn run(name: &str, args: &[&str]) -> Output {
    command(name).args(args).output().expect("the example starts")
}

/// Cargo builds the examples beside this test before it runs it.
pub(crate) fn command(name: &str) -> Command {
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.parent().and_then(Path::parent).expect("tests are in target/PROFILE/deps");
    let path = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is missing: run `cargo test -p deltallm-examples`", path.display());
    Command::new(path)
}
