//! How a call fails: a status, a message, and no panic.

use std::{
    any::Any,
    cell::RefCell,
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
};

use deltallm_attn::AttentionError;
use deltallm_core::{CoreError, SnapshotError, internal};

use crate::config::ConfigError;

/// What came of a call. Later versions may add more.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeltallmStatus {
    /// Done.
    Ok = 0,
    /// A pointer, length, stride or index does not fit.
    InvalidArgument = 1,
    /// The configuration is no JSON, names an unknown field, or has a setting that no kernel takes.
    Config = 2,
    /// Numbers that attention cannot take: NaN, infinite, too large for the store, or scores that leave f32.
    Attention = 3,
    /// The cache would outgrow `budget_bytes`.
    Budget = 4,
    /// The library has a bug and panicked. The kernel, or all kernels of a batch, answer this from now on: free them.
    Panic = 5,
    /// A file cannot be read or written, or what is in it is damaged, or of a kernel with other settings.
    File = 6,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{argument}: expected {expected}, got {got}")]
    Argument { argument: &'static str, expected: String, got: String },
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Attention(#[from] AttentionError),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}: {source}")]
    Snapshot { path: String, source: SnapshotError },
    #[error("expected no panic, got one, which is a bug of the library: {0}")]
    Panicked(String),
    #[error("expected a kernel that never panicked, got one that did in an earlier call: free it")]
    Poisoned,
}

impl CallError {
    pub(crate) fn null(argument: &'static str, expected: &str) -> Self {
        Self::Argument { argument, expected: expected.to_owned(), got: "NULL".to_owned() }
    }

    pub(crate) fn status(&self) -> DeltallmStatus {
        use AttentionError::{Core, Dropped, Shape, SliceTooShort};
        match self {
            Self::Argument { .. } => DeltallmStatus::InvalidArgument,
            Self::Config(_) => DeltallmStatus::Config,
            Self::Attention(Core(CoreError::BudgetExhausted { .. })) => DeltallmStatus::Budget,
            Self::Attention(
                Shape { .. }
                | SliceTooShort { .. }
                | Dropped { .. }
                | Core(CoreError::TruncateBeyondEnd { .. }),
            ) => DeltallmStatus::InvalidArgument,
            Self::Attention(_) => DeltallmStatus::Attention,
            Self::Snapshot { source: SnapshotError::Core(CoreError::BudgetExhausted { .. }), .. } => {
                DeltallmStatus::Budget
            }
            Self::Io { .. } | Self::Snapshot { .. } => DeltallmStatus::File,
            Self::Panicked(_) | Self::Poisoned => DeltallmStatus::Panic,
        }
    }
}

thread_local! {
    /// Of the last call of this thread that returned a status; empty if it went well.
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs the body of an exported function: whatever happens in it becomes a status and this thread's last error.
pub(crate) fn guard(body: impl FnOnce() -> Result<(), CallError>) -> DeltallmStatus {
    // What a panic leaves half done is a kernel, and that is behind a mutex, which remembers.
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(CallError::Panicked(message_of(&*panic))));
    let (status, message) = match result {
        Ok(()) => (DeltallmStatus::Ok, String::new()),
        Err(error) => (error.status(), error.to_string()),
    };
    // Names out of the configuration can be long and contain anything, a zero byte too, which would end the message in C.
    let message = CString::new(internal::message(message).to_string()).unwrap_or_default();
    // Fails only while the thread ends, when nobody can ask for it any more.
    let _ = LAST_ERROR.try_with(|last| last.replace(message));
    status
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// What went wrong in this thread's last call of a function that returns a status, in UTF-8: what was expected and
/// what came. Empty if nothing did; never NULL. The text stays as it is until the thread calls such a function again.
#[unsafe(no_mangle)]
pub extern "C" fn deltallm_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
