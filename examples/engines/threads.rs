//! Settings that candle reads from the environment.

use std::process::Command;

use anyhow::Context;

/// candle takes its numbers of threads from these, once, when it first needs them.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// With this candle unpacks quantised weights when it reads them.
const UNPACK: &str = "CANDLE_DEQUANTIZE_ALL";

/// Runs this program again with the variables that candle takes its number of threads from, and that has it unpack quantised
/// weights or not, unless they are right already. What is `None` is left as it is.
///
/// # Errors
/// When the program cannot be started again.
pub(crate) fn restart_with(threads: Option<u16>, unpacked: Option<bool>) -> anyhow::Result<()> {
    let threads = threads.into_iter().flat_map(|threads| THREADS.map(|name| (name, threads.to_string())));
    let weights = unpacked.map(|unpacked| (UNPACK, u8::from(unpacked).to_string()));
    let variables: Vec<(&str, String)> = threads.chain(weights).collect();
    if variables.iter().all(|(name, value)| std::env::var(name).is_ok_and(|is| is == *value)) {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let variables = variables.iter().map(|(name, value)| (name, value));
    let status = Command::new(program).args(std::env::args_os().skip(1)).envs(variables).status()?;
    // It has said itself what was wrong.
    std::process::exit(status.code().unwrap_or(2));
}
