//! The program `deltallm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    deltallm_cli::main()
}
