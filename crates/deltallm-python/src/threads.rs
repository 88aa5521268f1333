//! The threads that attention is shared among.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::value;

/// The pool of this process. After a `fork` of the process its threads are gone, and another one is made.
struct Pool {
    process: u32,
    threads: usize,
    pool: Option<Arc<ThreadPool>>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { process: 0, threads: 0, pool: None });

/// Does some work in the pool, so that nothing reaches for the threads of another one; on the spot, if it is not `parallel`.
pub(crate) fn run<T: Send>(parallel: bool, work: impl FnOnce() -> T + Send) -> T {
    if !parallel {
        return work();
    }
    let pool = {
        let mut known = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if known.threads == 0 {
            known.threads = std::thread::available_parallelism().map_or(1, usize::from);
        }
        let process = std::process::id();
        if known.process != process {
            // Waiting for threads that are no more would take forever.
            std::mem::forget(known.pool.take());
            known.process = process;
        }
        if known.pool.is_none() {
            known.pool = ThreadPoolBuilder::new().num_threads(known.threads).build().ok().map(Arc::new);
        }
        known.pool.clone()
    };
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// Whether there is more than one.
pub(crate) fn are_many() -> bool {
    num_threads() > 1
}

/// The threads that attention is shared among: as many as the machine has, unless `set_num_threads` says otherwise.
#[pyfunction]
pub(crate) fn num_threads() -> usize {
    let known = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match known.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

/// Sets how many threads attention is shared among, in kernels that are made afterwards.
#[pyfunction]
pub(crate) fn set_num_threads(threads: usize) -> PyResult<()> {
    if !(1..=1024).contains(&threads) {
        return Err(value(format!("threads: expected 1 to 1024, got {threads}")));
    }
    let mut known = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if known.threads != threads {
        known.threads = threads;
        known.pool = None;
    }
    Ok(())
}
