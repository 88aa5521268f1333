//! Files that are there whole or not at all.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// Writes `contents` to a temporary file beside `path` and renames it.
///
/// # Errors
/// When the folder does not exist or cannot be written to; what was at `path` is still there then.
pub fn write_whole(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let name =
        path.file_name().with_context(|| format!("{}: expected the path of a file", path.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may never have come into being.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("{}: cannot write", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = std::env::temp_dir().join(format!("deltallm-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(write_whole(&folder.join("no/such/folder"), b"x").is_err());
        // A folder cannot be replaced by a file.
        assert!(write_whole(&folder, b"x").is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
