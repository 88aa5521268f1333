//! Vectors of query lanes.

use deltallm_core::ElementType;
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

/// f32 lanes of a vector.
pub(crate) fn lanes(isa: Isa) -> usize {
    dispatch!(isa, simd => width(simd))
}

#[inline(always)]
fn width<S: Simd>(_: S) -> usize {
    S::f32s::LEN
}

/// Whether none of the numbers is infinite or NaN.
pub(crate) fn all_finite(isa: Isa, numbers: &[f32]) -> bool {
    dispatch!(isa, _simd => ElementType::F32.holds(numbers))
}

/// Whether an instruction set has registers for large tiles. The scalar one has not: unrolled tiles gain nothing there and
/// take minutes to compile.
#[inline(always)]
pub(crate) const fn large_tiles<S: Simd>() -> bool {
    cfg!(target_arch = "aarch64") || S::f32s::LEN > 4
}
