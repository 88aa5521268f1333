//! [`PackedProducts`](super::vector::PackedProducts) of single instruction sets.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86;
