//! What Python imports as `deltallm._deltallm`; `deltallm` is made of it in Python.
//!
//! One [`Kernel`](kernel::Kernel) is the attention of one layer together with its cache, made as a [`Spec`](spec::Spec) says. Numbers come as
//! arrays of numpy, and are read where they lie.

mod arrays;
mod calibration;
mod error;
mod kernel;
mod saved;
mod spec;
mod stats;
mod threads;

use pyo3::prelude::*;

#[pymodule]
mod _deltallm {
    #[pymodule_export]
    use crate::{
        calibration::{Calibrated, Calibrator},
        kernel::Kernel,
        saved::{load, peek, save},
        spec::Spec,
        stats::Stats,
        threads::{num_threads, set_num_threads},
    };

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "a name of Python's")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
