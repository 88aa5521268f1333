//! Where and when it was measured.

use jiff::{Timestamp, tz::TimeZone};

/// The CPU's name as the system gives it, or else the architecture.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cpus} CPUs", name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()))
}

/// Today in UTC, `2026-11-22`.
pub fn date() -> String {
    Timestamp::now().to_zoned(TimeZone::UTC).date().to_string()
}
