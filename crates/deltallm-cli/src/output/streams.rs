//! Machine-readable results.

use std::fmt::Display;
use std::io::Write;

use serde::Serialize;

/// Prints a line. A reader that has gone away (`| head`) is an error, which ends the program quietly, and no panic.
///
/// # Errors
/// When stdout is closed or full.
pub fn print_line(line: impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}

/// Prints one object on a line of its own. Numbers that are not finite become null.
///
/// # Errors
/// When stdout is closed.
pub fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    Ok(())
}
