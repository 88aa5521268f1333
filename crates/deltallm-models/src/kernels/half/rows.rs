//! Products of one row with a few tokens, compiled for every level.
#![allow(
    unsafe_code,
    reason = "vectors are read from memory, and these functions need instructions to be there"
)]
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_attn::SimdLevel;

#[cfg(target_arch = "aarch64")]
use super::lanes::Neon;
#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::{
    Half, TOKENS,
    lanes::{Lanes, Portable},
};
use crate::kernels::prefetch_after;

/// The instructions that multiply: a proof that this machine has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    Portable,
    /// Only made where it was detected, as all that follow.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Instructions {
    /// The fastest of a level.
    pub(super) fn of(level: SimdLevel) -> Self {
        #[cfg(target_arch = "x86_64")]
        if level.name() == "avx512" && is_x86_feature_detected!("avx512f") {
            return Self::Avx512;
        }
        #[cfg(target_arch = "x86_64")]
        if level.name() != "scalar"
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            return Self::Avx2;
        }
        #[cfg(target_arch = "aarch64")]
        if level.name() == "neon" && std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        let _ = level;
        Self::Portable
    }

    /// The products of a row `w` with up to [`TOKENS`] tokens that follow each other in `x`.
    pub(super) fn products<T: Half>(self, x: &[f32], w: &[T]) -> [f32; TOKENS] {
        assert!(x.len().is_multiple_of(w.len()) && (1..=TOKENS).contains(&(x.len() / w.len())));
        // SAFETY: the instructions were detected when this value was made, and the sizes are checked.
        unsafe {
            match self {
                Self::Portable => products::<T, Portable>(x, w),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => products_avx2(x, w),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => products_avx512(x, w),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => products_neon(x, w),
            }
        }
    }

    /// Converts a row or several.
    pub(super) fn widen<T: Half>(self, w: &[T], wide: &mut [f32]) {
        assert_eq!(w.len(), wide.len());
        // SAFETY: the instructions were detected when this value was made, and the sizes are checked.
        unsafe {
            match self {
                Self::Portable => widen::<T, Portable>(w, wide),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => widen_avx2(w, wide),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => widen_avx512(w, wide),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => widen_neon(w, wide),
            }
        }
    }
}

/// # Safety
/// As [`products`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products_avx2<T: Half>(x: &[f32], w: &[T]) -> [f32; TOKENS] {
    // SAFETY: as the caller promises.
    unsafe { products::<T, Avx2>(x, w) }
}

/// # Safety
/// As [`products`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn products_avx512<T: Half>(x: &[f32], w: &[T]) -> [f32; TOKENS] {
    // SAFETY: as the caller promises.
    unsafe { products::<T, Avx512>(x, w) }
}

/// # Safety
/// As [`products`].
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn products_neon<T: Half>(x: &[f32], w: &[T]) -> [f32; TOKENS] {
    // SAFETY: as the caller promises.
    unsafe { products::<T, Neon>(x, w) }
}

/// # Safety
/// As [`widen`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_avx2<T: Half>(w: &[T], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<T, Avx2>(w, wide) }
}

/// # Safety
/// As [`widen`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn widen_avx512<T: Half>(w: &[T], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<T, Avx512>(w, wide) }
}

/// # Safety
/// As [`widen`].
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn widen_neon<T: Half>(w: &[T], wide: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { widen::<T, Neon>(w, wide) }
}

/// # Safety
/// The CPU has the instructions of `V`, and `x` has the length of one to [`TOKENS`] rows.
#[inline(always)]
unsafe fn products<T: Half, V: Lanes>(x: &[f32], w: &[T]) -> [f32; TOKENS] {
    let mut out = [0.0; TOKENS];
    // SAFETY: as the caller promises.
    unsafe {
        match x.len() / w.len() {
            1 => out[..1].copy_from_slice(&tile::<T, V, 1>(x, w)),
            2 => out[..2].copy_from_slice(&tile::<T, V, 2>(x, w)),
            3 => out[..3].copy_from_slice(&tile::<T, V, 3>(x, w)),
            _ => out = tile::<T, V, TOKENS>(x, w),
        }
    }
    out
}

/// Vectors of a step: their sums hide the latency of one another.
const UNROLL: usize = 2;

/// The products with `N` tokens, kept in registers: every loop over them has a constant count.
///
/// # Safety
/// The CPU has the instructions of `V`, and `x` has the length of `N` rows.
#[inline(always)]
unsafe fn tile<T: Half, V: Lanes, const N: usize>(x: &[f32], w: &[T]) -> [f32; N] {
    let (len, step) = (w.len(), V::LEN * UNROLL);
    let (x, w) = (x.as_ptr(), w.as_ptr());
    let mut out = [0.0; N];
    // SAFETY: as the caller promises. `N` rows of `len` numbers are read at `x` and one at `w`, each up to its end.
    unsafe {
        let mut sums = [[V::zero(); UNROLL]; N];
        let mut at = 0;
        while at + step <= len {
            prefetch_after(&*w.add(at));
            for u in 0..UNROLL {
                let wide: V = T::load(w.add(at + u * V::LEN));
                for n in 0..N {
                    let x = V::load(x.add(n * len + at + u * V::LEN));
                    sums[n][u] = V::multiply_add(x, wide, sums[n][u]);
                }
            }
            at += step;
        }
        for n in 0..N {
            out[n] = V::sum(sums[n]);
        }
        while at < len {
            for n in 0..N {
                out[n] += *x.add(n * len + at) * (*w.add(at)).widen();
            }
            at += 1;
        }
    }
    out
}

/// # Safety
/// The CPU has the instructions of `V`, and both slices have the same length.
#[inline(always)]
unsafe fn widen<T: Half, V: Lanes>(w: &[T], wide: &mut [f32]) {
    let mut at = 0;
    while at + V::LEN <= w.len() {
        // SAFETY: as the caller promises; as many numbers are left.
        unsafe {
            let numbers: V = T::load(w.as_ptr().add(at));
            numbers.store(wide.as_mut_ptr().add(at));
        }
        at += V::LEN;
    }
    for (wide, w) in wide.iter_mut().zip(w).skip(at) {
        *wide = w.widen();
    }
}
