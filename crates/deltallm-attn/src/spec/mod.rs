//! From settings to kernels: one type for profiles, programs, benchmarks and C.

mod context;
mod kernel_spec;
mod kind;
mod layer;
mod overrides;
mod validate;

pub use context::KernelContext;
pub use kernel_spec::KernelSpec;
pub use kind::KernelKind;
pub use layer::LayerSpec;
pub use overrides::SpecOverrides;
