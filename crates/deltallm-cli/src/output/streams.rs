//! Stdout and stderr, either of which may be closed or full.

use std::fmt::{self, Display};
use std::io::{ErrorKind, Write};

use anyhow::Context;
use serde::Serialize;

/// Tells errors of stdout from those of other files.
#[derive(Debug, Clone, Copy)]
struct Stdout;

impl Display for Stdout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stdout: cannot write")
    }
}

/// Prints a text, at once and as it is. A reader that has gone away (`| head`) is an error, which ends the program quietly, and no panic.
///
/// # Errors
/// When stdout is closed or full.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).context(Stdout)
}

/// Prints a line.
///
/// # Errors
/// As [`print`].
pub fn print_line(line: impl Display) -> anyhow::Result<()> {
    print(format_args!("{line}\n"))
}

/// Prints one object on a line of its own. Numbers that are not finite become null.
///
/// # Errors
/// As [`print`].
pub fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    print_line(serde_json::to_string(report)?)
}

/// Says a line on stderr. Where nobody listens (`2>&1 | head`, a full disk) there is nobody to be told either: the work goes on.
pub fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether the reader of stdout has seen enough.
pub(crate) fn is_closed_stdout(error: &anyhow::Error) -> bool {
    let closed = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
    error.downcast_ref::<Stdout>().is_some() && error.downcast_ref().is_some_and(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stdout_may_be_left_by_its_reader() {
        let broken = || std::io::Error::from(ErrorKind::BrokenPipe);
        let stdout = Err::<(), _>(broken()).context(Stdout).unwrap_err();
        assert!(is_closed_stdout(&stdout) && is_closed_stdout(&stdout.context("writing the answer")));
        let full = Err::<(), _>(std::io::Error::from(ErrorKind::StorageFull)).context(Stdout).unwrap_err();
        let file = Err::<(), _>(broken()).context("--resume pipe: cannot write").unwrap_err();
        assert!(!is_closed_stdout(&full) && !is_closed_stdout(&file));
    }
}
