//! Asking for weights before they are needed.

/// Asks for a cache line that comes some way after `weights`, which are read line by line.
///
/// On AMD's CPUs the line a page further on: their own prefetching is good at reading in order (a Zen 4 core gets 22 to 25 GB/s),
/// and this takes it over the ends of pages. Other cores' own prefetching keeps so many lines of a page under way and stops at
/// its end, and several pages at a time get more out of it: called for the lines of [`PAGES`] pages one after the other, this has
/// asked for all lines of the next `PAGES` pages, one of each page in turn. On a Sapphire Rapids core a loop that only reads
/// takes 10 GB/s in order, and 14 to 15 so; on Zen 4 a model decodes a fifth slower so than in order.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "an intrinsic that takes an address")]
#[inline(always)]
pub(crate) fn prefetch_after<T>(weights: &T) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

    let here = std::ptr::from_ref(weights).cast::<i8>();
    // SSE4a is AMD's alone.
    let address = if is_x86_feature_detected!("sse4a") { here.wrapping_add(PAGE) } else { in_turn(here) };
    // SAFETY: a prefetch is a hint. It does not fault and does not access memory in the sense of the language, whatever the
    // address; SSE is part of every x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address) }
}

/// Bytes of a page.
#[cfg(target_arch = "x86_64")]
const PAGE: usize = 4096;

/// Pages that are read at the same time.
#[cfg(target_arch = "x86_64")]
const PAGES: usize = 8;

/// The line to ask for when `here` is read, so that those of the next [`PAGES`] pages come in turn.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn in_turn(here: *const i8) -> *const i8 {
    const LINE: usize = 64;
    let line = here.addr() % (PAGES * PAGE) / LINE;
    let ahead = PAGES * PAGE + line % PAGES * PAGE + line / PAGES * LINE;
    here.wrapping_sub(line * LINE).wrapping_add(ahead)
}

/// Nothing: there is no stable intrinsic.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn prefetch_after<T>(_: &T) {}
