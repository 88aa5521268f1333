//! Instructions that only some CPUs of an instruction set have, each with a token that proves it.
//!
//! What every CPU of an [`Isa`](crate::Isa) has needs none of these: `Avx2` comes with FMA and F16C, `Avx512` with VNNI and
//! VBMI2.
#![allow(unsafe_code, reason = "the token says that the instructions are there")]

#[cfg(target_arch = "x86_64")]
use fearless_simd::Avx2;
#[cfg(target_arch = "aarch64")]
use fearless_simd::Neon;

/// AVX-VNNI: `vpdpbusd` with 256 bits, beside AVX2.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub struct AvxVnni(Avx2);

#[cfg(target_arch = "x86_64")]
impl AvxVnni {
    /// The proof, if this CPU has them.
    pub fn of(avx2: Avx2) -> Option<Self> {
        is_x86_feature_detected!("avxvnni").then_some(Self(avx2))
    }

    /// The instruction set.
    #[inline(always)]
    pub const fn avx2(self) -> Avx2 {
        self.0
    }

    /// Runs `work` inside a function that is compiled with these instructions. What it calls must be `#[inline(always)]`.
    #[inline(always)]
    pub fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        #[inline]
        #[target_feature(enable = "avx2,bmi1,bmi2,cmpxchg16b,f16c,fma,fxsr,lzcnt,movbe,popcnt,xsave,avxvnni")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: a token of AVX2 proves all but the last of these instructions, and `of` has found that one.
        unsafe { compiled(work) }
    }
}

/// The dot products of bf16 of Arm, `bfdot`, beside NEON.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct Bf16Dot(Neon);

#[cfg(target_arch = "aarch64")]
impl Bf16Dot {
    /// The proof, if this CPU has them.
    pub fn of(neon: Neon) -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("bf16").then_some(Self(neon))
    }

    /// The instruction set.
    #[inline(always)]
    pub const fn neon(self) -> Neon {
        self.0
    }

    /// Runs `work` inside a function that is compiled with these instructions. What it calls must be `#[inline(always)]`.
    #[inline(always)]
    pub fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        #[inline]
        #[target_feature(enable = "neon,bf16")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: a token of NEON proves the first of these instructions, and `of` has found the other.
        unsafe { compiled(work) }
    }
}

/// The dot products of bytes of Arm, `sdot`, beside NEON.
#[cfg(target_arch = "aarch64")]
#[derive(Debug, Clone, Copy)]
pub struct DotProd(Neon);

#[cfg(target_arch = "aarch64")]
impl DotProd {
    /// The proof, if this CPU has them.
    pub fn of(neon: Neon) -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(neon))
    }

    /// The instruction set.
    #[inline(always)]
    pub const fn neon(self) -> Neon {
        self.0
    }

    /// Runs `work` inside a function that is compiled with these instructions. What it calls must be `#[inline(always)]`.
    #[inline(always)]
    pub fn vectorize<R>(self, work: impl FnOnce() -> R) -> R {
        #[inline]
        #[target_feature(enable = "neon,dotprod")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        // SAFETY: a token of NEON proves the first of these instructions, and `of` has found the other.
        unsafe { compiled(work) }
    }
}
