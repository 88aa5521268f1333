//! Micro-kernels of single instruction sets.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod expand_avx512;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod madd;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod vnni;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod x86;
