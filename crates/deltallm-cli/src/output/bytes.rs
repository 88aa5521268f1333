//! Bytes: of the process, and of the cache that delta attention is compared with.

use deltallm::models::ModelConfig;
use deltallm::{CachePlan, KeyPlan, KvStore};

/// The most memory the process has had resident, or `None` where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    parse_peak(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmHWM` of Linux' `/proc/PID/status`, which is in units of 1024 bytes.
fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The planned cache of a layer, which drops what its mask does not reach.
pub fn layer_plan(config: &ModelConfig, layer: usize, store: KvStore, keys: KeyPlan) -> CachePlan {
    let plan = CachePlan::new(config.kv_heads, config.head_dim, store, keys);
    plan.attended(config.mask(layer).most_keys())
}

/// Bytes of a dense f16 cache of all layers that holds `tokens` tokens.
pub fn dense_f16_bytes(config: &ModelConfig, tokens: usize) -> usize {
    let plan = |layer| layer_plan(config, layer, KvStore::F16, KeyPlan::Dense);
    (0..config.layers).map(|layer| plan(layer).footprint(tokens).total()).fold(0, usize::saturating_add)
}

/// A number of bytes for people, in decimal units.
pub fn format_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_from_the_status_file() {
        assert_eq!(parse_peak("Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t   123 kB\n"), Some(123 * 1024));
        assert_eq!(parse_peak("Name:\tx\n"), None);
    }

    #[test]
    fn bytes_for_people() {
        let texts = [9_999, 20_400, 1_250_000, 3_000_000_000].map(format_bytes);
        assert_eq!(texts, ["9999 B", "20 kB", "1.2 MB", "3.00 GB"]);
    }
}
