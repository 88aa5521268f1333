//! 16-bit floats and signed bytes as f32. All conversions are exact.
#![allow(unsafe_code, reason = "an instruction that the language has no name for")]

#[cfg(target_arch = "x86")]
use std::arch::x86::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "aarch64")]
use std::arch::{aarch64::*, asm};

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use fearless_simd::{Avx2, Avx512, f32x8, f32x16, i8x16, kernel, u16x8, u16x16};
use fearless_simd::{Fallback, prelude::*};
#[cfg(target_arch = "aarch64")]
use fearless_simd::{Neon, f32x4, kernel};
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Conversions of one vector; the slice is as long as a vector of f32.
///
/// # Panics
/// All methods, for a slice of another length.
pub trait Convert: Simd {
    /// binary16 to f32.
    #[inline(always)]
    fn f16s(self, x: &[f16]) -> Self::f32s {
        check::<Self>(x.len());
        Self::f32s::from_fn(self, |i| f16_to_f32(x[i]))
    }

    /// bfloat16 to f32.
    #[inline(always)]
    fn bf16s(self, x: &[bf16]) -> Self::f32s {
        check::<Self>(x.len());
        Self::f32s::from_fn(self, |i| f32::from_bits(u32::from(x[i].to_bits()) << 16))
    }

    /// Signed bytes to f32.
    #[inline(always)]
    fn i8s(self, x: &[i8]) -> Self::f32s {
        check::<Self>(x.len());
        Self::f32s::from_fn(self, |i| f32::from(x[i]))
    }
}

#[inline(always)]
fn check<S: Simd>(len: usize) {
    assert_eq!(len, S::f32s::LEN, "numbers for a vector");
}

/// An f16 as f32. (`f16::to_f32` asks for the CPU's features every time.)
#[inline(always)]
pub fn f16_to_f32(x: f16) -> f32 {
    let bits = u32::from(x.to_bits());
    // Infinity and NaN have the largest exponent in the one type and in the other.
    let largest = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(finite_f16_to_f32(x).to_bits() | largest)
}

/// An f16 that is neither infinite nor NaN as f32, in fewer instructions.
#[inline(always)]
pub fn finite_f16_to_f32(x: f16) -> f32 {
    // Exponent and fraction in their places; the product puts the bias of the exponent right, also for denormals.
    let bits = u32::from(x.to_bits());
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

impl Convert for Fallback {}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl Convert for Avx2 {
    #[inline(always)]
    fn f16s(self, x: &[f16]) -> f32x8<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx2: Avx2, x: u16x8<Avx2>) -> f32x8<Avx2> {
                _mm256_cvtph_ps(x.into()).simd_into(avx2)
            }
        );
        convert(self, u16x8::from_slice(self, x.reinterpret_cast()))
    }

    #[inline(always)]
    fn bf16s(self, x: &[bf16]) -> f32x8<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx2: Avx2, x: u16x8<Avx2>) -> f32x8<Avx2> {
                let wide = _mm256_cvtepu16_epi32(x.into());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)).simd_into(avx2)
            }
        );
        convert(self, u16x8::from_slice(self, x.reinterpret_cast()))
    }

    #[inline(always)]
    fn i8s(self, x: &[i8]) -> f32x8<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx2: Avx2, x: i64) -> f32x8<Avx2> {
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_set1_epi64x(x))).simd_into(avx2)
            }
        );
        check::<Self>(x.len());
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(x).for_each(|(byte, x)| *byte = *x as u8);
        convert(self, i64::from_le_bytes(bytes))
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl Convert for Avx512 {
    #[inline(always)]
    fn f16s(self, x: &[f16]) -> f32x16<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx512: Avx512, x: u16x16<Avx512>) -> f32x16<Avx512> {
                _mm512_cvtph_ps(x.into()).simd_into(avx512)
            }
        );
        convert(self, u16x16::from_slice(self, x.reinterpret_cast()))
    }

    #[inline(always)]
    fn bf16s(self, x: &[bf16]) -> f32x16<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx512: Avx512, x: u16x16<Avx512>) -> f32x16<Avx512> {
                let wide = _mm512_cvtepu16_epi32(x.into());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)).simd_into(avx512)
            }
        );
        convert(self, u16x16::from_slice(self, x.reinterpret_cast()))
    }

    #[inline(always)]
    fn i8s(self, x: &[i8]) -> f32x16<Self> {
        kernel!(
            #[inline(always)]
            fn convert(avx512: Avx512, x: i8x16<Avx512>) -> f32x16<Avx512> {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x.into())).simd_into(avx512)
            }
        );
        convert(self, i8x16::from_slice(self, x))
    }
}

#[cfg(target_arch = "aarch64")]
impl Convert for Neon {
    /// The intrinsic, `vcvt_f32_f16`, is not stable yet.
    #[inline(always)]
    fn f16s(self, x: &[f16]) -> f32x4<Self> {
        kernel!(
            #[inline(always)]
            fn convert(neon: Neon, x: u64) -> f32x4<Neon> {
                let (wide, halves): (float32x4_t, uint16x4_t);
                halves = vcreate_u16(x);
                // SAFETY: every CPU with NEON has the instruction; it reads and writes these registers alone.
                unsafe {
                    asm!(
                        "fcvtl {wide:v}.4s, {halves:v}.4h",
                        wide = out(vreg) wide,
                        halves = in(vreg) halves,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                wide.simd_into(neon)
            }
        );
        check::<Self>(x.len());
        convert(self, four([x[0].to_bits(), x[1].to_bits(), x[2].to_bits(), x[3].to_bits()]))
    }

    #[inline(always)]
    fn bf16s(self, x: &[bf16]) -> f32x4<Self> {
        kernel!(
            #[inline(always)]
            fn convert(neon: Neon, x: u64) -> f32x4<Neon> {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vcreate_u16(x))).simd_into(neon)
            }
        );
        check::<Self>(x.len());
        convert(self, four([x[0].to_bits(), x[1].to_bits(), x[2].to_bits(), x[3].to_bits()]))
    }
}

/// Four 16-bit numbers as one of 64 bits, the first one lowest.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
fn four(x: [u16; 4]) -> u64 {
    x.into_iter().rev().fold(0, |bits, x| bits << 16 | u64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, dispatch};

    #[inline(always)]
    fn all<S: Simd, T: Copy>(_: S, numbers: &[T], convert: impl Fn(&[T]) -> S::f32s) -> Vec<f32> {
        numbers.chunks_exact(S::f32s::LEN).flat_map(|x| convert(x).as_slice().to_vec()).collect()
    }

    #[test]
    fn every_number_of_16_or_8_bits_is_converted_exactly() {
        let bits = || 0..=u16::MAX;
        let (f16s, bf16s): (Vec<_>, Vec<_>) =
            (bits().map(f16::from_bits).collect(), bits().map(bf16::from_bits).collect());
        let i8s: Vec<i8> = (i8::MIN..=i8::MAX).collect();
        for isa in Isa::available() {
            dispatch!(isa, simd => {
                for (x, wide) in f16s.iter().zip(all(simd, &f16s, |x| simd.f16s(x))) {
                    assert!(wide.to_bits() == x.to_f32().to_bits() || wide.is_nan() && x.is_nan(), "{isa}: {x}");
                }
                for (x, wide) in bf16s.iter().zip(all(simd, &bf16s, |x| simd.bf16s(x))) {
                    assert!(wide.to_bits() == x.to_f32().to_bits() || wide.is_nan() && x.is_nan(), "{isa}: {x}");
                }
                for (x, wide) in i8s.iter().zip(all(simd, &i8s, |x| simd.i8s(x))) {
                    assert_eq!(wide, f32::from(*x), "{isa}");
                }
            });
        }
        for x in f16s {
            assert!(!x.is_finite() || finite_f16_to_f32(x).to_bits() == x.to_f32().to_bits(), "{x}");
        }
    }
}
