//! The C example compiled, linked in both ways, and run.
#![cfg(unix)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

fn path(of: &str) -> String {
    format!("{}/{of}", env!("CARGO_MANIFEST_DIR"))
}

/// The compiler that the variable names, or else the usual one, if it is there and makes programs for this machine.
fn compiler(variable: &str, usual: &str) -> Option<String> {
    let name = env::var(variable).unwrap_or_else(|_| usual.to_owned());
    let Ok(Output { status, stdout, .. }) = Command::new(&name).arg("-dumpmachine").output() else {
        println!("skipped: there is no {name}");
        return None;
    };
    let machine = String::from_utf8_lossy(&stdout).trim().replace("arm64", "aarch64");
    if !status.success() || !machine.starts_with(env::consts::ARCH) {
        println!("skipped: {name} compiles for {machine:?}, and not for {}", env::consts::ARCH);
        return None;
    }
    Some(name)
}

/// Where cargo puts this package's libraries: beside the program of a test that depends on them.
fn libraries() -> PathBuf {
    env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn library(prefix: &str, suffix: &str) -> PathBuf {
    let file = libraries().join(format!("{prefix}deltallm_capi{suffix}"));
    assert!(file.is_file(), "cargo has not built {}", file.display());
    file
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}:\n{text}", output.status);
    text
}

fn compile_and_run(name: &str, library: &Path, more: &[String]) {
    let Some(cc) = compiler("CC", "cc") else { return };
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join(name);
    let mut compile = Command::new(cc);
    compile.arg("-std=c11").args(STRICT).args(["-I", &path("include"), &path("c/example.c")]);
    run(compile.arg(library).args(more).args(["-lpthread", "-lm", "-o"]).arg(&program));
    let text = run(&mut Command::new(program));
    let error = "an error:  configuration: haeds: unknown field `haeds`, expected one of `kernel`, `heads`";
    for line in ["theta 0:   largest", "theta 0.5: largest", "bf16:      largest", "200 tokens: ", error] {
        assert!(text.contains(line), "{line:?} is missing in:\n{text}");
    }
}

#[test]
fn the_example_runs_with_the_static_library() {
    let more = if cfg!(target_os = "linux") { vec!["-ldl".to_owned()] } else { vec![] };
    compile_and_run("example-static", &library("lib", ".a"), &more);
}

#[test]
fn the_example_runs_with_the_shared_library() {
    let more = [format!("-Wl,-rpath,{}", libraries().display())];
    compile_and_run("example-shared", &library(env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX), &more);
}

#[test]
fn the_header_is_good_for_cpp_too() {
    let Some(cpp) = compiler("CXX", "c++") else { return };
    run(Command::new(cpp)
        .args(["-std=c++11", "-fsyntax-only", "-x", "c++"])
        .args(STRICT)
        .arg(path("include/deltallm.h")));
}
