//! Caches in files.

use std::fs;

use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};
use pyo3::prelude::*;

use crate::{
    error::{io, snapshot},
    kernel::Kernel,
};

/// Saves the caches of kernels, the layers of a model, to a file, with the tokens that they hold and a note of the caller's. The file gets its name
/// once it is whole.
#[pyfunction]
#[pyo3(signature = (path, kernels, tokens=vec![], note=""))]
pub(crate) fn save(
    py: Python<'_>,
    path: &str,
    kernels: Vec<Bound<'_, Kernel>>,
    tokens: Vec<u32>,
    note: &str,
) -> PyResult<()> {
    let mut writer = SnapshotWriter::new();
    writer.text("kernels");
    writer.text(note);
    writer.list(&tokens);
    writer.count(kernels.len());
    for kernel in &kernels {
        kernel.get().lock()?.save(&mut writer).map_err(|error| snapshot(path, &error))?;
    }
    py.detach(|| writer.write_file(path)).map_err(|error| io(path, &error))
}

/// What a file of caches says of itself: the tokens, the note, and how many kernels there are.
#[pyfunction]
pub(crate) fn peek(py: Python<'_>, path: &str) -> PyResult<(Vec<u32>, String, u64)> {
    let read = |bytes: Vec<u8>| -> Result<_, SnapshotError> {
        let mut reader = SnapshotReader::copying(bytes.into())?;
        let (tokens, note) = begin(&mut reader)?;
        Ok((tokens, note, reader.number()?))
    };
    py.detach(|| {
        let bytes = fs::read(path).map_err(|error| io(path, &error))?;
        read(bytes).map_err(|error| snapshot(path, &error))
    })
}

/// What comes before the kernels.
fn begin(reader: &mut SnapshotReader) -> Result<(Vec<u32>, String), SnapshotError> {
    let what = reader.text()?;
    reader.expect("a file of", "kernels".to_owned(), what)?;
    let note = reader.text()?;
    Ok((reader.list()?, note))
}

/// Takes over the caches that were saved to a file, into kernels that are empty and have the settings of those that were saved: the tokens, and
/// the note. After an error they are still empty.
#[pyfunction]
pub(crate) fn load(
    py: Python<'_>,
    path: &str,
    kernels: Vec<Bound<'_, Kernel>>,
) -> PyResult<(Vec<u32>, String)> {
    let kernels: Vec<&Kernel> = kernels.iter().map(Bound::get).collect();
    let read = |bytes: Vec<u8>| -> Result<_, SnapshotError> {
        let mut reader = SnapshotReader::copying(bytes.into())?;
        let (tokens, note) = begin(&mut reader)?;
        let layers = reader.number()?;
        reader.expect("layers", kernels.len() as u64, layers)?;
        let mut loaded = Vec::new();
        for kernel in &kernels {
            let reason = "expected a kernel that never panicked";
            let kernel = kernel.lock().map_err(|_| SnapshotError::Unsupported { reason })?;
            let reason = "expected a kernel that can be forked";
            let mut fork = kernel.fork().ok_or(SnapshotError::Unsupported { reason })?;
            fork.load(&mut reader)?;
            loaded.push(fork);
        }
        reader.end()?;
        Ok((loaded, tokens, note))
    };
    py.detach(|| {
        let bytes = fs::read(path).map_err(|error| io(path, &error))?;
        let (loaded, tokens, note) = read(bytes).map_err(|error| snapshot(path, &error))?;
        for (kernel, loaded) in kernels.iter().zip(loaded) {
            *kernel.lock()? = loaded;
        }
        Ok((tokens, note))
    })
}
