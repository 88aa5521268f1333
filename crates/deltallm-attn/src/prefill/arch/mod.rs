//! Micro-kernels of single instruction sets.

#[cfg(target_arch = "aarch64")]
pub(crate) mod first_pass_aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod first_pass_x86;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that read and write memory; every block says why it is sound")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
pub(crate) mod pairs_avx512;
#[cfg(target_arch = "aarch64")]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
pub(crate) mod pairs_neon;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics that write memory")]
pub(crate) mod stream_avx512;
