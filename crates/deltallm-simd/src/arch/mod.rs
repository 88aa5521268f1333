//! Instructions of single instruction sets, each behind the token that proves it.

#[cfg(target_arch = "aarch64")]
mod arm;
pub mod features;
pub mod prefetch;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub use x86::dot_avx512;
