//! Errors as exceptions of Python.

use std::io;

use deltallm_attn::{AttentionError, calibration::CalibrationError};
use deltallm_core::{CoreError, SnapshotError};
use pyo3::{
    PyErr, PyResult,
    exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError},
};

/// A budget that is exhausted is a `MemoryError`, everything else a `ValueError`.
pub(crate) fn attention(error: AttentionError) -> PyErr {
    let text = error.to_string();
    match error {
        AttentionError::Core(CoreError::BudgetExhausted { .. }) => PyMemoryError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

pub(crate) fn value(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Refuses numbers of layers that no model has, before there is a list with an entry for each.
pub(crate) fn check_layers(what: &str, got: usize) -> PyResult<()> {
    const MOST: usize = 1 << 12;
    if got <= MOST { Ok(()) } else { Err(value(format!("{what}: expected at most {MOST}, got {got}"))) }
}

/// What the closure of Python has raised comes back as it was.
pub(crate) fn calibration(error: CalibrationError) -> PyErr {
    match error {
        CalibrationError::Engine(error) => match error.downcast::<PyErr>() {
            Ok(raised) => *raised,
            Err(error) => PyRuntimeError::new_err(error.to_string()),
        },
        CalibrationError::Attention(error) => attention(error),
        other => value(other),
    }
}

pub(crate) fn io(path: &str, error: &io::Error) -> PyErr {
    let text = format!("{path}: {error}");
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, text)),
        None => PyOSError::new_err(text),
    }
}

pub(crate) fn snapshot(path: &str, error: &SnapshotError) -> PyErr {
    let text = format!("{path}: {error}");
    match error {
        SnapshotError::Core(CoreError::BudgetExhausted { .. }) => PyMemoryError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}
