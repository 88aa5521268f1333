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

/// A committed fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}
