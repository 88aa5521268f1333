//! The command line as a whole.

use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{calibrate, evaluate, generate, inspect, pictures, report, shell};
use crate::{bench, main_with};

/// Language models with delta attention: try it, measure it, set it up
#[derive(Debug, Parser)]
#[command(name = "deltallm", version, disable_help_subcommand = true, arg_required_else_help = true)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(Box<generate::Args>),
    Evaluate(Box<evaluate::Args>),
    Calibrate(Box<calibrate::Args>),
    Report(Box<report::Args>),
    Bench(Box<bench::Args>),
    Inspect(Box<inspect::Args>),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
    #[command(hide = true)]
    Pictures(pictures::Args),
}

/// Runs the program. Errors, those of the command line included, are one line on stderr and exit code 2.
pub fn main() -> ExitCode {
    let start = Instant::now();
    main_with(|program: Program| match program.command {
        Command::Generate(args) => generate::run(*args),
        Command::Evaluate(args) => evaluate::run(*args),
        Command::Calibrate(args) => calibrate::run(*args),
        Command::Report(args) => report::run(*args),
        Command::Bench(args) => bench::run(&args, &[], start),
        Command::Inspect(args) => inspect::run(&args),
        Command::Completions(args) => shell::completions(&args, Program::command()),
        Command::Man(args) => shell::man(&args, Program::command()),
        Command::Pictures(args) => pictures::run(args),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Program::command().debug_assert();
    }
}
