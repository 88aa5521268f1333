//! The weighted sum of rows of values.

use fearless_simd::prelude::*;

use super::{
    lanes::Lanes,
    rows::{Row, Rows, lanes},
};

/// `sums[head] += sum over i of weights[head * stride + i] * rows[picks[i]]`; `sums` is `[heads, channels]`, and
/// `channels` a multiple of the vector length.
#[inline(always)]
pub(super) fn accumulate<S: Lanes>(
    simd: S,
    rows: impl Rows,
    picks: &[u8],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
    channels: usize,
) {
    let heads = sums.len() / channels;
    let mut head = 0;
    while head < heads {
        let passes = (heads - head).div_ceil(S::HEADS);
        let pass = (heads - head).div_ceil(passes);
        let (weights, sums) = (&weights[head * stride..], &mut sums[head * channels..]);
        match pass {
            1 => heads_of::<S, 1>(simd, rows, picks, weights, stride, sums, channels),
            2 => heads_of::<S, 2>(simd, rows, picks, weights, stride, sums, channels),
            3 => heads_of::<S, 3>(simd, rows, picks, weights, stride, sums, channels),
            _ => heads_of::<S, 4>(simd, rows, picks, weights, stride, sums, channels),
        }
        head += pass.min(4);
    }
}

/// `G` heads, four vectors of channels at a time.
#[inline(always)]
fn heads_of<S: Lanes, const G: usize>(
    simd: S,
    rows: impl Rows,
    picks: &[u8],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
    channels: usize,
) {
    let vectors = channels / lanes::<S>();
    let mut vector = 0;
    while vector + 4 <= vectors {
        panel::<S, G, 4>(simd, rows, picks, weights, stride, sums, channels, vector);
        vector += 4;
    }
    while vector < vectors {
        panel::<S, G, 1>(simd, rows, picks, weights, stride, sums, channels, vector);
        vector += 1;
    }
}

/// `G` heads by `N` vectors of channels, kept in registers over all picked rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Lanes, const G: usize, const N: usize>(
    simd: S,
    rows: impl Rows,
    picks: &[u8],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
    channels: usize,
    first: usize,
) {
    let weights: [&[f32]; G] = std::array::from_fn(|head| &weights[head * stride..][..picks.len()]);
    let at = |head: usize, vector: usize| head * channels + (first + vector) * lanes::<S>();
    let mut kept: [[S::f32s; N]; G] = std::array::from_fn(|head| {
        std::array::from_fn(|vector| S::f32s::from_slice(simd, &sums[at(head, vector)..][..lanes::<S>()]))
    });
    for (i, pick) in picks.iter().enumerate() {
        let row = rows.row(usize::from(*pick), channels);
        let weight: [S::f32s; G] = std::array::from_fn(|head| S::f32s::splat(simd, weights[head][i]));
        for vector in 0..N {
            let value = row.vector(simd, first + vector);
            for (kept, weight) in kept.iter_mut().zip(weight) {
                kept[vector] = value.mul_add(weight, kept[vector]);
            }
        }
    }
    for (head, kept) in kept.iter().enumerate() {
        for (vector, kept) in kept.iter().enumerate() {
            kept.store_slice(&mut sums[at(head, vector)..][..lanes::<S>()]);
        }
    }
}
