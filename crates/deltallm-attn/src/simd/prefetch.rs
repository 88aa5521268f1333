//! Asking for memory before it is needed.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86")]
use std::arch::x86::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Numbers in a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// Asks for the cache line at an address. Does nothing where Rust has no stable instruction for it.
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch is a hint. It does not fault and does not access memory in the sense of the language,
    // whatever the address; SSE, which it needs, is part of every level that calls it.
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    let _ = address;
}

/// The same for the L2 cache, for the levels of x86.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn prefetch_l2(address: *const u8) {
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
}

/// Asks for the picked rows of `[rows, channels]`.
#[inline(always)]
pub(super) fn prefetch_rows(rows: &[f32], picks: &[usize], channels: usize) {
    for pick in picks {
        let row = &rows[pick * channels..][..channels];
        row.chunks(LINE).for_each(|line| prefetch(line.as_ptr().cast()));
    }
}
