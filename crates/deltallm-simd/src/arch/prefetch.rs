//! Asking for memory before it is needed.
#![allow(unsafe_code, reason = "intrinsics that take an address")]

#[cfg(all(target_arch = "x86", target_feature = "sse"))]
use std::arch::x86::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Asks for the cache line at an address. Does nothing where Rust has no stable instruction for it.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint. It does not fault and does not access memory in the sense of the language, whatever the
    // address; SSE, which it needs, is part of every x86-64.
    #[cfg(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse")))]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    let _ = address;
}

/// The same for the L2 cache.
#[inline(always)]
pub fn prefetch_l2(address: *const u8) {
    // SAFETY: as in `prefetch`.
    #[cfg(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse")))]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    let _ = address;
}

/// Asks for the selected rows of `[rows, channels]`.
#[inline(always)]
pub fn prefetch_rows(rows: &[f32], selected: &[usize], channels: usize) {
    for index in selected {
        let row = &rows[index * channels..][..channels];
        row.chunks(LINE / size_of::<f32>()).for_each(|line| prefetch(line.as_ptr().cast()));
    }
}
