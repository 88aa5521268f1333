//! The two 16-bit floats.

use deltallm_simd::convert::{Convert, f16_to_f32};
use half::{bf16, f16};

/// A 16-bit float.
pub(crate) trait Float16: Copy + Send + Sync {
    /// The same number.
    fn widen(self) -> f32;

    /// The same numbers, as many as a vector has.
    fn vector<S: Convert>(simd: S, x: &[Self]) -> S::f32s;
}

impl Float16 for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn vector<S: Convert>(simd: S, x: &[Self]) -> S::f32s {
        simd.bf16s(x)
    }
}

impl Float16 for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f16_to_f32(self)
    }

    #[inline(always)]
    fn vector<S: Convert>(simd: S, x: &[Self]) -> S::f32s {
        simd.f16s(x)
    }
}
