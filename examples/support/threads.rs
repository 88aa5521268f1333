//! The same number of threads for everyone.

use std::process::Command;

use anyhow::Context;

/// candle takes its numbers of threads from these, once, when it first needs them.
const VARIABLES: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// Runs this program again with the variables that candle reads, unless they are right already.
///
/// # Errors
/// When the program cannot be started again.
pub fn restart_with(threads: u16) -> anyhow::Result<()> {
    let threads = threads.to_string();
    if VARIABLES.iter().all(|name| std::env::var(name).is_ok_and(|value| value == threads)) {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let variables = VARIABLES.map(|name| (name, &threads));
    let status = Command::new(program).args(std::env::args_os().skip(1)).envs(variables).status()?;
    // It has said itself what was wrong.
    std::process::exit(status.code().unwrap_or(2));
}
