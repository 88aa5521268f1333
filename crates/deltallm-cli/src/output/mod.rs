//! What a program gives: text and JSON, files, bytes and shares in words, a progress bar.

mod bytes;
mod digest;
mod files;
mod progress;
mod skipped;
mod streams;

pub use bytes::{dense_f16_bytes, format_bytes, layer_plan, peak_rss_bytes};
pub use digest::sha256_hex;
pub use files::{check_folder, write_whole};
pub use progress::Progress;
pub use skipped::SkippedValues;
pub(crate) use streams::is_closed_stdout;
pub use streams::{note, print, print_json, print_line};
