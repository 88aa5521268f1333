//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::SnapshotWriter;

impl SnapshotWriter {
    /// How the name of a file ends that is being written.
    pub const UNFINISHED: &str = ".tmp";

    /// Writes everything to a file, which gets its name once it is whole and on the disk: whatever happens meanwhile, there is the old file of
    /// that name, or none.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        write_file(path.as_ref(), |file| self.write(file))
    }
}

/// Makes a file of what `write` writes. It gets its name once it is whole and on the disk.
///
/// # Errors
/// Those of the system and of `write`; what was at `path` is still there then.
pub fn write_file(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    // A name of its own for whoever writes, also in a folder that machines share.
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let (process, count) = (std::process::id(), WRITTEN.fetch_add(1, Ordering::Relaxed));
    // Of a long name the beginning is enough, and leaves room.
    let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(64).collect();
    let ending = SnapshotWriter::UNFINISHED;
    let unfinished = path.with_file_name(format!(".{name}.{since:x}-{process}-{count}{ending}"));
    let written = File::create_new(&unfinished).and_then(|mut file| {
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    });
    written.inspect_err(|_| {
        // Of a name that could not be given nothing stays behind.
        let _ = fs::remove_file(&unfinished);
    })
}
