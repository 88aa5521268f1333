//! What saved kernels begin with, whichever they are: their settings and their store; and the error for what no cache would have saved.

use deltallm_core::{KvStore, SnapshotError, SnapshotReader, SnapshotWriter};

use crate::AttentionKernel;

/// Begins a kernel, which must not be within a step. Each of the settings by which its cache can be told from others has a name.
pub(crate) fn begin(
    settings: impl Iterator<Item = (&'static str, String)>,
    store: KvStore,
    within_step: bool,
    writer: &mut SnapshotWriter,
) -> Result<(), SnapshotError> {
    if within_step {
        return Err(SnapshotError::Unsupported { reason: "expected no open step, got one" });
    }
    settings.for_each(|(_, setting)| writer.text(&setting));
    writer.text(store.name());
    Ok(())
}

/// Checks that a kernel with these settings comes next, and that the one that it is to be loaded into is not in use; then makes that one's
/// store the saved one's, which may have been narrowed.
pub(crate) fn check<K: AttentionKernel>(
    kernel: &mut K,
    settings: impl Iterator<Item = (&'static str, String)>,
    in_use: bool,
    store: impl Fn(&K) -> KvStore,
    reader: &mut SnapshotReader,
) -> Result<(), SnapshotError> {
    if in_use {
        return Err(SnapshotError::Unsupported {
            reason: "expected an empty cache to load into, got one in use",
        });
    }
    for (what, expected) in settings {
        let got = reader.text()?;
        reader.expect(what, expected, got)?;
    }
    let (saved, expected) = (reader.text()?, store(kernel));
    while store(kernel).name() != saved {
        let before = store(kernel);
        let narrowed = kernel.narrow();
        if narrowed.is_err() || store(kernel) == before {
            reader.expect("store", expected.name(), &*saved)?;
        }
    }
    Ok(())
}

/// The error for what no cache with these settings would have saved.
pub(crate) fn invalid(what: &'static str, expected: &'static str, got: usize) -> SnapshotError {
    SnapshotError::Invalid { what, expected, got: got as u64 }
}
