//! Files that are there whole or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use deltallm::core::internal::write_file;

/// Writes `contents` to a file beside `path`, and renames it once it is on the disk. A link stays one: the file that it leads to is replaced.
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
    anyhow::ensure!(path.file_name().is_some(), "{}: expected the path of a file", path.display());
    let written = write_file(path, |file| file.write_all(contents));
    written.with_context(|| format!("{}: cannot write", path.display()))
}

/// Whether files can be made in `folder`, which is tried before work whose result is to go there.
///
/// # Errors
/// Those of the system.
pub fn check_folder(folder: &Path) -> anyhow::Result<()> {
    let probe = folder.join(format!(".deltallm-{}", std::process::id()));
    let written = fs::File::create_new(&probe).and_then(|_| fs::remove_file(&probe));
    written.with_context(|| format!("{}: cannot write", folder.display()))
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
        check_folder(&folder).unwrap();
        assert!(check_folder(&folder.join("no/such")).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
