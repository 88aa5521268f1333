//! Texts that are read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};

/// Most bytes of a file. A text of this size takes an hour to read for a small model; what has more is a mistake, such as `/dev/zero`.
const MOST_BYTES: u64 = 256 << 20;

/// Reads a file whole; `name` is what errors call it.
///
/// # Errors
/// For a file that cannot be read, or is too large.
pub(crate) fn read_bytes(name: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("{name}: expected a text file"))?;
    // Devices and pipes have no length: they are read as far as anything may be.
    let length = file.metadata().map_or(0, |file| file.len());
    read_limited(name, file, length, MOST_BYTES)
}

fn read_limited(name: &str, file: impl Read, length: u64, most: u64) -> anyhow::Result<Vec<u8>> {
    let too_large =
        |got: &str| format!("{name}: expected at most {most} bytes, got {got}; take a part of it");
    ensure!(length <= most, too_large(&length.to_string()));
    let mut bytes = Vec::new();
    let read = file.take(most + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("{name}: expected a text file"))?;
    ensure!(bytes.len() as u64 <= most, too_large("more"));
    Ok(bytes)
}

/// Reads a text; `option` is the option that named it.
///
/// # Errors
/// For a file that cannot be read, is too large, is not UTF-8, or is empty.
pub fn read_text(option: &str, path: &Path) -> anyhow::Result<String> {
    let name = format!("{option} {}", path.display());
    let bytes = read_bytes(&name, path)?;
    let text = String::from_utf8(bytes).with_context(|| format!("{name}: expected UTF-8 text"))?;
    ensure!(!text.trim().is_empty(), "{name}: expected a text, got an empty file");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_refused_once_it_is_too_large() {
        let read = |file: &mut dyn Read, length| read_limited("--text x", file, length, 10);
        assert_eq!(read(&mut std::io::repeat(b'a').take(10), 0).unwrap(), b"aaaaaaaaaa");
        let error = read(&mut std::io::repeat(0), 0).unwrap_err().to_string();
        assert_eq!(error, "--text x: expected at most 10 bytes, got more; take a part of it");
        // One that says how long it is is not read at all.
        let error = read(&mut std::io::empty(), 11).unwrap_err().to_string();
        assert!(error.contains("got 11"), "{error}");
    }
}
