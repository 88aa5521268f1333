//! `--phases`.

use serde::Serialize;

/// When attention is approximate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phases {
    /// While a prompt is read and while text is generated
    Both,
    /// While a prompt is read only
    Prefill,
}
