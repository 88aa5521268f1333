//! Files for tests.

use std::fs;
use std::path::{Path, PathBuf};

/// A fresh directory under the build folder; `name` must be unique in the test program.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if path.exists() {
        fs::remove_dir_all(&path).expect("remove the last run's files");
    }
    fs::create_dir_all(&path).expect("create a directory for the test");
    path
}

/// A file that is longer than any JSON that is read, and gone when the test ends. It is sparse: nothing is in it.
pub(crate) struct TooLong(PathBuf);

impl TooLong {
    pub(crate) const BYTES: u64 = (64 << 20) + 1;

    pub(crate) fn new(path: PathBuf) -> Self {
        fs::File::create(&path).and_then(|file| file.set_len(Self::BYTES)).expect("a sparse file");
        Self(path)
    }
}

impl Drop for TooLong {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A committed fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
