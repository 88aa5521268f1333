//! What all commands share: threads, JSON, Ctrl-C, and one line for whatever goes wrong.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::{Command, CommandFactory, FromArgMatches, ValueEnum};
use deltallm::core::internal::message;

use super::numbers::whole;
use super::rules;
use crate::{is_closed_stdout, note};

/// Options of most commands.
#[derive(Debug, clap::Args)]
pub struct CommonArgs {
    /// Worker threads [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = whole(1..=1024_u16))]
    pub threads: Option<u16>,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    pub json: bool,
}

impl CommonArgs {
    /// Starts the thread pool, of which the current thread is one. Call it once, before any work.
    ///
    /// # Errors
    /// When the system refuses the threads.
    pub fn start_threads(&self) -> anyhow::Result<()> {
        // Zero leaves the number to rayon: one per CPU, or what RAYON_NUM_THREADS says.
        let threads = self.threads.map_or(0, usize::from);
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .use_current_thread()
            .build_global()
            .with_context(|| format!("cannot start {threads} threads"))
    }
}

/// What a run can be compared with.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Baseline {
    Dense,
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What shells expect of a program that Ctrl-C has ended.
const ENDED_BY_CTRL_C: u8 = 130;

/// Lets the first Ctrl-C from now on only be noticed by [`interrupted`]; the second ends the program.
///
/// # Errors
/// When the system refuses the handler.
pub fn stop_on_ctrl_c() -> anyhow::Result<()> {
    static HANDLED: OnceLock<Result<(), String>> = OnceLock::new();
    let handled = HANDLED.get_or_init(|| {
        let handler = || {
            if INTERRUPTED.swap(true, Ordering::Relaxed) {
                std::process::exit(ENDED_BY_CTRL_C.into());
            }
        };
        ctrlc::set_handler(handler).map_err(|error| error.to_string())
    });
    handled.clone().map_err(|error| anyhow::anyhow!("cannot handle Ctrl-C: {error}"))
}

/// Whether Ctrl-C has been pressed since [`stop_on_ctrl_c`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Parses the command line, refuses settings that would have no effect, and runs the program. Errors, those of the command line included, become one line on
/// stderr and exit code 2; what Ctrl-C has cut short ends with 130.
pub fn main_with<A: CommandFactory + FromArgMatches>(run: impl FnOnce(A) -> anyhow::Result<()>) -> ExitCode {
    let command = with_negative_numbers(A::command());
    let parsed = command.try_get_matches().and_then(|given| Ok((A::from_arg_matches(&given)?, given)));
    let (args, given) = match parsed {
        Ok(parsed) => parsed,
        // Nothing was asked for: the list of commands says more than one line can.
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        Err(error) if error.use_stderr() => return fail(&usage_line(&error.render().to_string())),
        Err(help_or_version) => {
            return match help_or_version.print() {
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    fail(&format!("stdout: cannot write: {error}"))
                }
                _ => ExitCode::SUCCESS,
            };
        }
    };
    match rules::check(&given).and_then(|()| run(args)) {
        Ok(()) if interrupted() => ExitCode::from(ENDED_BY_CTRL_C),
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe (`| head`) has seen enough: nothing is wrong.
        Err(error) if is_closed_stdout(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error_line(&error)),
    }
}

/// Lets `--seed -1` be a seed, to be refused as one, and not an option that does not exist.
fn with_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let takes = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes)
    });
    command.mut_subcommands(with_negative_numbers)
}

fn fail(line: &str) -> ExitCode {
    note(format_args!("error: {line}"));
    ExitCode::from(2)
}

/// An error with its causes. Some errors repeat their cause in their own words; it is not said twice.
fn error_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    one_line(line.lines())
}

/// The message of the argument parser without its usage summary.
fn usage_line(message: &str) -> String {
    let lines = message.lines().filter(|line| !line.starts_with("Usage:"));
    let line = one_line(lines).replace(" For more information, try '--help'.", "; try '--help'");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// On one line, and whatever a file has put in it shown as text.
fn one_line<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    message(lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let io = std::io::Error::other("no such file");
        let error = anyhow::Error::new(io).context("a.gguf: no such file").context("cannot open the model");
        assert_eq!(error_line(&error), "cannot open the model: a.gguf: no such file");
    }

    #[test]
    fn what_a_file_says_cannot_write_to_the_terminal() {
        let error = anyhow::anyhow!("tensor `\u{1b}[2J\u{202e}{}`", "x".repeat(1 << 20));
        let line = error_line(&error);
        assert!(line.starts_with(r"tensor `\u{1b}[2J\u{202e}xxx") && line.len() < 5000, "{line}");
        assert!(line.ends_with("… (1048592 bytes)"), "{line}");
    }

    #[test]
    fn parser_messages_become_one_line() {
        let message = "error: invalid value 'x' for '--n <N>'\n  [possible values: 1, 2]\n\nUsage: program [OPTIONS]\n\n\
                       For more information, try '--help'.\n";
        assert_eq!(
            usage_line(message),
            "invalid value 'x' for '--n <N>' [possible values: 1, 2]; try '--help'"
        );
    }
}
