//! Vectors of `f32`, loaded from 16-bit floats.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "aarch64")]
use std::arch::{aarch64::*, asm};

use half::{bf16, f16, slice::HalfFloatSliceExt};

/// A vector of `f32`.
///
/// # Safety
/// All functions: the CPU has the instructions of the implementation, and there are [`LEN`](Self::LEN) numbers at an address,
/// which need not be aligned to more than one of them.
pub(crate) trait Lanes: Copy {
    const LEN: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(at: *const f32) -> Self;
    unsafe fn load_f16(at: *const f16) -> Self;
    unsafe fn load_bf16(at: *const bf16) -> Self;
    unsafe fn store(self, at: *mut f32);
    /// `a b + c`.
    unsafe fn multiply_add(a: Self, b: Self, c: Self) -> Self;

    /// The sum of all lanes of all vectors, in an order that depends on nothing else.
    #[inline(always)]
    unsafe fn sum<const N: usize>(vectors: [Self; N]) -> f32 {
        let mut lanes = [0.0; 16];
        let mut total = 0.0;
        for vector in vectors {
            // SAFETY: as the caller promises; no vector is longer than 16.
            unsafe { vector.store(lanes.as_mut_ptr()) };
            let mut len = Self::LEN;
            while len > 1 {
                len /= 2;
                for lane in 0..len {
                    lanes[lane] += lanes[lane + len];
                }
            }
            total += lanes[0];
        }
        total
    }
}

/// What every machine has.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Lanes for Portable {
    const LEN: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { at.cast::<[f32; 8]>().read() })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        let mut lanes = [0.0; 8];
        // SAFETY: as the caller promises.
        unsafe { at.cast::<[f16; 8]>().read() }.convert_to_f32_slice(&mut lanes);
        Self(lanes)
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { at.cast::<[bf16; 8]>().read() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { at.cast::<[f32; 8]>().write(self.0) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|lane| a.0[lane] * b.0[lane] + c.0[lane]))
    }
}

/// AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

// SAFETY of all blocks: as the caller promises.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl Lanes for Avx2 {
    const LEN: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        Self(unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { _mm256_storeu_ps(at, self.0) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(a.0, b.0, c.0) })
    }
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY of all blocks: as the caller promises.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl Lanes for Avx512 {
    const LEN: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(at) })
    }

    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        Self(unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, self.0) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, c.0) })
    }
}

/// NEON.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t);

// SAFETY of all blocks: as the caller promises.
#[cfg(target_arch = "aarch64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "all blocks have the same argument")]
impl Lanes for Neon {
    const LEN: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { vdupq_n_f32(0.0) })
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        Self(unsafe { vld1q_f32(at) })
    }

    /// The intrinsic, `vcvt_f32_f16`, is not stable yet.
    #[inline(always)]
    unsafe fn load_f16(at: *const f16) -> Self {
        let numbers: float32x4_t;
        unsafe {
            asm!(
                "fcvtl {numbers:v}.4s, {halves:v}.4h",
                numbers = out(vreg) numbers,
                halves = in(vreg) vld1_u16(at.cast()),
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        Self(numbers)
    }

    #[inline(always)]
    unsafe fn load_bf16(at: *const bf16) -> Self {
        Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.cast()))) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        unsafe { vst1q_f32(at, self.0) };
    }

    #[inline(always)]
    unsafe fn multiply_add(a: Self, b: Self, c: Self) -> Self {
        Self(unsafe { vfmaq_f32(c.0, a.0, b.0) })
    }
}
