//! What a program gives: JSON, files, bytes in words, a progress bar.

mod bytes;
mod digest;
mod files;
mod json;
mod progress;

pub use bytes::{dense_f16_bytes, format_bytes, peak_rss_bytes};
pub use digest::sha256_hex;
pub use files::write_whole;
pub use json::{print_json, print_line};
pub use progress::Progress;
