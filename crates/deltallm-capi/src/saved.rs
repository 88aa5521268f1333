//! The exported functions that make a cache an object: fork, save, load.

use std::{ffi::c_char, io, ptr};

use deltallm_core::{SnapshotError, SnapshotReader, SnapshotWriter};

use crate::{
    error::{CallError, DeltallmStatus, guard},
    kernel::{DeltallmKernel, existing, with},
    memory::{text, write},
};

/// Makes a kernel with the same tokens, which goes its own way from here: for several samples from one prompt. It shares what is cached, and the
/// budget, and copies what either of them changes. It is written to `*fork` and must be given back with deltallm_kernel_free. After an
/// error `*fork` is NULL.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `fork` points to a pointer that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_fork(
    kernel: Option<&DeltallmKernel>,
    fork: *mut *mut DeltallmKernel,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise about `fork`.
        unsafe { write("fork", fork, ptr::null_mut()) }?;
        let shape = existing(kernel)?.shape;
        let new = with(kernel, |kernel| {
            kernel.fork().ok_or_else(|| CallError::Argument {
                argument: "kernel",
                expected: "one that can be forked".to_owned(),
                got: "another one".to_owned(),
            })
        })?;
        // SAFETY: the caller's promise about `fork`.
        unsafe { write("fork", fork, Box::into_raw(Box::new(DeltallmKernel::new(shape, new)))) }
    })
}

/// Writes the cache to the file `path`, a name in UTF-8 that ends with a zero byte. It gets its name once it is whole: whatever happens
/// meanwhile, there is the old file of that name, or none.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `path` points to a text that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_save(
    kernel: Option<&DeltallmKernel>,
    path: *const c_char,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise about `path`.
        let path = unsafe { text("path", path) }?;
        let mut writer = SnapshotWriter::new();
        with(kernel, |kernel| kernel.save(&mut writer).map_err(|source| snapshot(path, source)))?;
        writer.write_file(path).map_err(|source| failed(path, source))
    })
}

/// Takes over the cache that was saved to the file `path`. The kernel must be empty, and have the configuration of the one that was saved; what
/// follows is what that one would have answered, bit for bit. After an error it is still empty.
///
/// # Safety
/// `kernel` is NULL or comes from deltallm_kernel_new and has not been freed, and `path` points to a text that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_load(
    kernel: *mut DeltallmKernel,
    path: *const c_char,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise about `path`.
        let path = unsafe { text("path", path) }?;
        // SAFETY: the caller's promise about `kernel`.
        let kernel = unsafe { kernel.as_ref() };
        existing(kernel)?;
        let bytes = std::fs::read(path).map_err(|source| failed(path, source))?;
        with(kernel, |kernel| {
            let reader = SnapshotReader::copying(bytes.into());
            reader
                .and_then(|mut reader| {
                    // A kernel with something behind it is a file of something else.
                    let mut loaded = kernel.fork().ok_or(SnapshotError::Unsupported {
                        reason: "expected a kernel that can be forked",
                    })?;
                    loaded.load(&mut reader)?;
                    reader.end()?;
                    *kernel = loaded;
                    Ok(())
                })
                .map_err(|source| snapshot(path, source))
        })
    })
}

fn failed(path: &str, source: io::Error) -> CallError {
    CallError::Io { path: path.to_owned(), source }
}

fn snapshot(path: &str, source: SnapshotError) -> CallError {
    CallError::Snapshot { path: path.to_owned(), source }
}
