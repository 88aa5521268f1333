//! Machine-readable results.

use std::io::Write;

use serde::Serialize;

/// Prints one object on a line of its own. Numbers that are not finite become null.
///
/// # Errors
/// When stdout is closed.
pub fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    Ok(())
}
