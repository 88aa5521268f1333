//! Asking for memory before it is needed.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86")]
use std::arch::x86::{_MM_HINT_T0, _mm_prefetch};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Asks for the cache line at an address.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint. It does not fault and does not access memory in the sense of the language,
    // whatever the address; SSE, which it needs, is part of every level that calls it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}
