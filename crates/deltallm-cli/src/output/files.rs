//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::Context;

/// Reads a file of at most `limit` bytes. A device such as `/dev/zero` has no end, and no size that could be asked for before.
///
/// # Errors
/// For a file that cannot be read or is longer.
pub(crate) fn read_whole(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    anyhow::ensure!(size <= limit, "expected at most {limit} bytes, got {size}");
    // One more than may be there.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= limit, "expected at most {limit} bytes, got more");
    Ok(bytes)
}

/// Writes `contents` to a temporary file beside `path` and renames it. A link stays one: the file that it leads to is replaced.
///
/// # Errors
/// When the folder does not exist or cannot be written to, and when there is something else than a file at `path`, such as a
/// device; what was at `path` is still there then.
pub fn write_whole(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    if let Ok(metadata) = fs::metadata(path) {
        anyhow::ensure!(
            metadata.is_file(),
            "{}: expected a file or nothing, got a folder or a device; choose another path",
            path.display()
        );
    }
    let target = fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
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
    fn files_without_an_end_are_not_read_to_it() {
        let error = |path: &Path| read_whole(path, 1 << 20).unwrap_err().to_string();
        if cfg!(unix) {
            assert_eq!(error(Path::new("/dev/zero")), "expected at most 1048576 bytes, got more");
        }
        let path = std::env::temp_dir().join(format!("deltallm-sparse-{}", std::process::id()));
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(error(&path), "expected at most 1048576 bytes, got 1099511627776");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(read_whole(&path, 1 << 20).unwrap().len(), 1 << 20);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = std::env::temp_dir().join(format!("deltallm-output-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(write_whole(&folder.join("no/such/folder"), b"x").is_err());
        // A link leads where it led, and a device stays what it is.
        #[cfg(unix)]
        {
            let link = folder.join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            write_whole(&link, b"three").unwrap();
            assert!(link.is_symlink() && fs::read(&path).unwrap() == b"three");
            fs::remove_file(&link).unwrap();
            let error = write_whole(Path::new("/dev/null"), b"x").unwrap_err().to_string();
            assert!(error.contains("got a folder or a device"), "{error}");
        }
        // A folder cannot be replaced by a file.
        assert!(write_whole(&folder, b"x").is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
