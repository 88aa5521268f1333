//! Products of one row with a few tokens, compiled for every instruction set.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

#[cfg(target_arch = "aarch64")]
use deltallm_simd::fearless_simd::Neon;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use deltallm_simd::fearless_simd::{Avx2, Avx512};
use deltallm_simd::{
    Isa,
    convert::Convert,
    dispatch,
    fearless_simd::{Fallback, f32x8, prelude::*},
    weight_order::WeightOrder,
};

use super::float16::Float16;

/// Tokens that share a conversion.
pub(super) const TOKENS: usize = 4;

/// The products of a row `w` with up to [`TOKENS`] tokens that follow each other in `x`. Weights are asked for in that order.
pub(super) fn products<T: Float16>(isa: Isa, order: WeightOrder, x: &[f32], w: &[T]) -> [f32; TOKENS] {
    assert!(x.len().is_multiple_of(w.len()) && (1..=TOKENS).contains(&(x.len() / w.len())));
    dispatch!(isa, simd => {
        let mut out = [0.0; TOKENS];
        match x.len() / w.len() {
            1 => out[..1].copy_from_slice(&tile::<_, T, 1>(simd, order, x, w)),
            2 => out[..2].copy_from_slice(&tile::<_, T, 2>(simd, order, x, w)),
            3 => out[..3].copy_from_slice(&tile::<_, T, 3>(simd, order, x, w)),
            _ => out = tile::<_, T, TOKENS>(simd, order, x, w),
        }
        out
    })
}

/// Converts a row or several.
pub(super) fn widen<T: Float16>(isa: Isa, w: &[T], wide: &mut [f32]) {
    assert_eq!(w.len(), wide.len());
    dispatch!(isa, simd => widen_vectors(simd, w, wide));
}

/// Vectors that rows are multiplied in.
trait RowVectors: Convert {
    type Vector: SimdFloat<Self, Element = f32>;

    /// The same numbers, as many as a vector has.
    fn vector<T: Float16>(self, x: &[T]) -> Self::Vector;
}

/// Eight at a time, which are independent of each other, also without vectors.
impl RowVectors for Fallback {
    type Vector = f32x8<Self>;

    #[inline(always)]
    fn vector<T: Float16>(self, x: &[T]) -> f32x8<Self> {
        let (low, high) = x.split_at(4);
        T::vector(self, low).combine(T::vector(self, high))
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl RowVectors for Avx2 {
    type Vector = <Self as Simd>::f32s;

    #[inline(always)]
    fn vector<T: Float16>(self, x: &[T]) -> Self::Vector {
        T::vector(self, x)
    }
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
impl RowVectors for Avx512 {
    type Vector = <Self as Simd>::f32s;

    #[inline(always)]
    fn vector<T: Float16>(self, x: &[T]) -> Self::Vector {
        T::vector(self, x)
    }
}

#[cfg(target_arch = "aarch64")]
impl RowVectors for Neon {
    type Vector = <Self as Simd>::f32s;

    #[inline(always)]
    fn vector<T: Float16>(self, x: &[T]) -> Self::Vector {
        T::vector(self, x)
    }
}

/// Vectors of a step: their sums hide the latency of one another.
const UNROLL: usize = 2;

/// The products with `N` tokens, kept in registers: every loop over them has a constant count.
#[inline(always)]
fn tile<S: RowVectors, T: Float16, const N: usize>(
    simd: S,
    order: WeightOrder,
    x: &[f32],
    w: &[T],
) -> [f32; N] {
    let (len, width) = (w.len(), S::Vector::LEN);
    let step = UNROLL * width;
    let whole = len / step * step;
    let mut rows = [&[][..]; N];
    for n in 0..N {
        rows[n] = &x[n * len..][..len];
    }
    let mut sums = [[S::Vector::splat(simd, 0.0); UNROLL]; N];
    for at in (0..whole).step_by(step) {
        let w = &w[at..at + step];
        order.prefetch_after(&w[0]);
        for u in 0..UNROLL {
            let wide = simd.vector(&w[u * width..][..width]);
            for n in 0..N {
                let x = S::Vector::from_slice(simd, &rows[n][at + u * width..][..width]);
                sums[n][u] = x.mul_add(wide, sums[n][u]);
            }
        }
    }
    let mut out = [0.0; N];
    for n in 0..N {
        for vector in sums[n] {
            out[n] += sum_of_lanes(vector);
        }
        for (x, w) in rows[n][whole..].iter().zip(&w[whole..]) {
            out[n] += x * w.widen();
        }
    }
    out
}

/// The sum of all lanes, in an order that depends on nothing else: one half is added to the other until one is left.
#[inline(always)]
fn sum_of_lanes<S: Simd, V: SimdFloat<S, Element = f32>>(vector: V) -> f32 {
    let mut lanes = [0.0; 16];
    lanes[..V::LEN].copy_from_slice(vector.as_slice());
    let mut len = V::LEN;
    while len > 1 {
        len /= 2;
        for lane in 0..len {
            lanes[lane] += lanes[lane + len];
        }
    }
    lanes[0]
}

#[inline(always)]
fn widen_vectors<S: RowVectors, T: Float16>(simd: S, w: &[T], wide: &mut [f32]) {
    let width = S::Vector::LEN;
    let (mut numbers, mut out) = (w.chunks_exact(width), wide.chunks_exact_mut(width));
    for (numbers, out) in numbers.by_ref().zip(out.by_ref()) {
        simd.vector(numbers).store_slice(out);
    }
    for (w, out) in numbers.remainder().iter().zip(out.into_remainder()) {
        *out = w.widen();
    }
}
