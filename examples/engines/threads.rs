//! Settings that candle reads from the environment.

use std::process::Command;

use anyhow::Context;

/// candle takes its numbers of threads from these, once, when it first needs them.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"];

/// With this candle unpacks quantised weights when it reads them.
const UNPACK: &str = "CANDLE_DEQUANTIZE_ALL";

/// Runs this program again with the variables that candle takes its number of threads from, unless they are right already.
///
/// # Errors
/// When the program cannot be started again.
pub fn restart_with(threads: u16) -> anyhow::Result<()> {
    restart(&THREADS.map(|name| (name, threads.to_string())))
}

/// The same, where a number of threads is given, with the variable that has candle unpack quantised weights, or not.
///
/// # Errors
/// As [`restart_with`].
pub fn restart_with_weights(threads: Option<u16>, unpacked: bool) -> anyhow::Result<()> {
    let threads = threads.into_iter().flat_map(|threads| THREADS.map(|name| (name, threads.to_string())));
    let weights = [(UNPACK, u8::from(unpacked).to_string())];
    restart(&threads.chain(weights).collect::<Vec<_>>())
}

fn restart(variables: &[(&str, String)]) -> anyhow::Result<()> {
    if variables.iter().all(|(name, value)| std::env::var(name).is_ok_and(|is| is == *value)) {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let variables = variables.iter().map(|(name, value)| (name, value));
    let status = Command::new(program).args(std::env::args_os().skip(1)).envs(variables).status()?;
    // It has said itself what was wrong.
    std::process::exit(status.code().unwrap_or(2));
}
