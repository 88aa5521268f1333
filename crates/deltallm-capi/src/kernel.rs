//! The exported functions: a kernel's life from its configuration to its end.

use std::{
    ffi::{CStr, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
    sync::{Mutex, MutexGuard},
};

use deltallm_attn::{AttentionKernel, AttentionShape};
use deltallm_core::{Footprint, HeadSparsity};

use crate::{
    config::{ConfigError, KernelConfig},
    error::{CallError, DeltallmStatus, guard},
    memory::{text, write},
};

/// Version of this interface. It changes when a program that was compiled with an older header must be compiled again.
pub const DELTALLM_ABI_VERSION: u32 = 1;

/// The attention of one layer together with its key-value cache.
///
/// Calls on one kernel wait for each other. After a panic in one of them the rest are refused, on all kernels of a batch.
#[derive(Debug)]
pub struct DeltallmKernel {
    pub(crate) shape: AttentionShape,
    /// Poisoned by a panic.
    kernel: Mutex<Box<dyn AttentionKernel>>,
}

/// What delta coding and value skipping save. The counts are of the keys in the cache (`elements`, `nonzeros`) and of all
/// pairs attended since the kernel was made; the shares follow from them and are 0 where there is nothing to count.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltallmStats {
    /// Entries of the delta matrix: tokens times channels times kv heads. 0 where keys are not delta-coded.
    pub elements: u64,
    /// Entries that are not zero.
    pub nonzeros: u64,
    /// Pairs of a query and a key that it attends to, counted once per query head.
    pub pairs: u64,
    /// Pairs scored with the exact key.
    pub exact_pairs: u64,
    /// Pairs whose value was skipped.
    pub skipped_values: u64,
    /// Share of `elements` that are zero.
    pub zero_fraction: f64,
    /// Share of `pairs` that are exact.
    pub exact_share: f64,
    /// Sparsity as the paper counts it: `zero_fraction` times the share of pairs that are not exact.
    pub sparsity: f64,
    /// Share of the pairs that are not exact whose value was skipped.
    pub values_skipped: f64,
}

/// Bytes that a cache holds. Room that is allocated and not filled yet counts.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltallmFootprint {
    /// Keys of the whole history, coded or not.
    pub keys: usize,
    /// Values of the whole history.
    pub values: usize,
    /// The exact window and the sinks.
    pub window: usize,
    /// Tables of pages and blocks.
    pub bookkeeping: usize,
    /// All of these.
    pub total: usize,
}

impl From<HeadSparsity> for DeltallmStats {
    fn from(counts: HeadSparsity) -> Self {
        Self {
            elements: counts.elements,
            nonzeros: counts.nonzeros,
            pairs: counts.pairs,
            exact_pairs: counts.exact_pairs,
            skipped_values: counts.skipped_values,
            zero_fraction: counts.zero_fraction(),
            exact_share: counts.exact_share(),
            sparsity: counts.sparsity(),
            values_skipped: counts.values_skipped(),
        }
    }
}

impl From<Footprint> for DeltallmFootprint {
    fn from(bytes: Footprint) -> Self {
        let Footprint { keys, values, window, bookkeeping } = bytes;
        Self { keys, values, window, bookkeeping, total: bytes.total() }
    }
}

impl DeltallmKernel {
    pub(crate) fn new(shape: AttentionShape, kernel: Box<dyn AttentionKernel>) -> Self {
        Self { shape, kernel: Mutex::new(kernel) }
    }

    fn from_json(text: &str) -> Result<Self, ConfigError> {
        let config = KernelConfig::from_json(text)?;
        Ok(Self::new(config.shape()?, config.kernel()?))
    }

    /// For one call, unless the kernel has panicked before.
    pub(crate) fn lock(&self) -> Result<MutexGuard<'_, Box<dyn AttentionKernel>>, CallError> {
        self.kernel.lock().map_err(|_| CallError::Poisoned)
    }

    /// Shapes of q, k, v and out.
    pub(crate) fn shapes(&self, tokens: usize) -> [[usize; 3]; 4] {
        let (heads, kv_heads) = (self.shape.heads(), self.shape.kv_heads());
        let [key, value] = [self.shape.head_dim(), self.shape.value_dim()];
        [[heads, key], [kv_heads, key], [kv_heads, value], [heads, value]]
            .map(|[heads, channels]| [tokens, heads, channels])
    }
}

/// Does `body` with the kernel, unless there is none or it has panicked before.
pub(crate) fn with<T>(
    kernel: Option<&DeltallmKernel>,
    body: impl FnOnce(&mut Box<dyn AttentionKernel>) -> Result<T, CallError>,
) -> Result<T, CallError> {
    body(&mut *existing(kernel)?.lock()?)
}

pub(crate) fn existing(kernel: Option<&DeltallmKernel>) -> Result<&DeltallmKernel, CallError> {
    kernel.ok_or_else(|| CallError::null("kernel", "a kernel from deltallm_kernel_new"))
}

/// DELTALLM_ABI_VERSION of the library, to be compared with that of the header.
#[unsafe(no_mangle)]
pub extern "C" fn deltallm_abi_version() -> u32 {
    DELTALLM_ABI_VERSION
}

/// Version of the library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn deltallm_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

/// Makes a kernel with an empty cache from `config`, a JSON object in UTF-8 whose fields are listed in docs/c-api.md, and
/// writes it to `*kernel`. It must be given back with deltallm_kernel_free. After an error `*kernel` is NULL.
///
/// # Safety
/// `config` points to a text that ends with a zero byte, and `kernel` to a pointer that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_new(
    config: *const c_char,
    kernel: *mut *mut DeltallmKernel,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise about `kernel`.
        unsafe { write("kernel", kernel, ptr::null_mut()) }?;
        // SAFETY: the caller's promise about `config`.
        let config = unsafe { text("config", config) }?;
        let new = Box::new(DeltallmKernel::from_json(config)?);
        // SAFETY: the caller's promise about `kernel`.
        unsafe { write("kernel", kernel, Box::into_raw(new)) }
    })
}

/// Frees a kernel and its cache; NULL is nothing. The last error stays as it is. The kernel must not be used again, nor by
/// another thread while this runs.
#[unsafe(no_mangle)]
pub extern "C" fn deltallm_kernel_free(kernel: Option<Box<DeltallmKernel>>) {
    // Whatever there is to free has been freed as far as it can be.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(kernel)));
}

/// Announces that the next `tokens` tokens are one prompt, however many calls bring them. A window of blocks and
/// `exact_prompt` depend on its length; without this every call of more than one token counts as a whole prompt.
///
/// # Safety
/// `kernel` is NULL or comes from deltallm_kernel_new and has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_begin_prompt(
    kernel: *mut DeltallmKernel,
    tokens: usize,
) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        with(unsafe { kernel.as_ref() }, |kernel| {
            kernel.begin_prompt(tokens);
            Ok(())
        })
    })
}

/// Writes the number of tokens in the cache to `*len`. Those that were dropped because nobody attends to them any more count.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `len` points to a number that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_len(
    kernel: Option<&DeltallmKernel>,
    len: *mut usize,
) -> DeltallmStatus {
    guard(|| {
        let tokens = with(kernel, |kernel| Ok(kernel.len()))?;
        // SAFETY: the caller's promise.
        unsafe { write("len", len, tokens) }
    })
}

/// Forgets every token from `len` on; more than there are is an error, and under a mask a cut so far back that the next query would miss
/// what has been dropped. Exact copies of keys that had left the window of
/// hybrid attention by more tokens than `exact_rewind` says do not come back: the last keys before the cut are seen through their deltas until
/// it fills up again.
///
/// # Safety
/// `kernel` is NULL or comes from deltallm_kernel_new and has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_truncate(kernel: *mut DeltallmKernel, len: usize) -> DeltallmStatus {
    guard(|| {
        // SAFETY: the caller's promise.
        with(unsafe { kernel.as_ref() }, |kernel| Ok(kernel.truncate(len)?))
    })
}

/// Writes what delta coding and value skipping save, over all heads, to `*stats`.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `stats` points to a DeltallmStats that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_stats(
    kernel: Option<&DeltallmKernel>,
    stats: *mut DeltallmStats,
) -> DeltallmStatus {
    guard(|| {
        let total = with(kernel, |kernel| Ok(kernel.stats().total()))?;
        // SAFETY: the caller's promise.
        unsafe { write("stats", stats, total.into()) }
    })
}

/// The same for one kv head, counted from 0, and the query heads that share it.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `stats` points to a DeltallmStats that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_head_stats(
    kernel: Option<&DeltallmKernel>,
    kv_head: usize,
    stats: *mut DeltallmStats,
) -> DeltallmStatus {
    guard(|| {
        let all = with(kernel, |kernel| Ok(kernel.stats()))?;
        let head = all.heads().get(kv_head).ok_or_else(|| CallError::Argument {
            argument: "kv_head",
            expected: format!("less than {}", all.heads().len()),
            got: kv_head.to_string(),
        })?;
        // SAFETY: the caller's promise.
        unsafe { write("stats", stats, (*head).into()) }
    })
}

/// Writes the bytes that the cache holds to `*footprint`.
///
/// # Safety
/// `kernel` is NULL or has not been freed, and `footprint` points to a DeltallmFootprint that can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn deltallm_kernel_footprint(
    kernel: Option<&DeltallmKernel>,
    footprint: *mut DeltallmFootprint,
) -> DeltallmStatus {
    guard(|| {
        let bytes = with(kernel, |kernel| Ok(kernel.footprint()))?;
        // SAFETY: the caller's promise.
        unsafe { write("footprint", footprint, bytes.into()) }
    })
}
