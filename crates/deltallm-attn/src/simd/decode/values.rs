//! The weighted sum of rows of values.

use fearless_simd::prelude::*;

use super::{
    ahead::Ahead,
    lanes::Lanes,
    rows::{Row, Rows, lanes},
};

/// `sums[head] += sum over i of weights[head * stride + i] * rows[picks[i]]`; `sums` is `[heads, channels]`, and
/// `channels` a multiple of the vector length. Meanwhile the memory `ahead` is asked for.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
pub(super) fn accumulate<S: Lanes, R: Rows>(
    simd: S,
    rows: R,
    ahead: Ahead,
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
        let ahead = if head == 0 { ahead } else { Ahead::default() };
        match pass {
            1 => heads_of::<S, R, 1>(simd, rows, ahead, picks, weights, stride, sums, channels),
            2 if const { S::HEADS >= 2 } => {
                heads_of::<S, R, 2>(simd, rows, ahead, picks, weights, stride, sums, channels)
            }
            3 if const { S::HEADS >= 3 } => {
                heads_of::<S, R, 3>(simd, rows, ahead, picks, weights, stride, sums, channels)
            }
            4 if const { S::HEADS >= 4 } => {
                heads_of::<S, R, 4>(simd, rows, ahead, picks, weights, stride, sums, channels)
            }
            // Not reached: a pass has at most `HEADS` heads, which no level has more than four of.
            _ => {}
        }
        head += pass;
    }
}

/// `G` heads, four vectors of channels at a time.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn heads_of<S: Lanes, R: Rows, const G: usize>(
    simd: S,
    rows: R,
    ahead: Ahead,
    picks: &[u8],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
    channels: usize,
) {
    let vectors = channels / lanes::<S>();
    let mut vector = 0;
    while vector + 4 <= vectors {
        panel::<S, R, G, 4>(
            simd,
            rows,
            if vector == 0 { ahead } else { Ahead::default() },
            picks,
            weights,
            stride,
            sums,
            channels,
            vector,
        );
        vector += 4;
    }
    while vector < vectors {
        panel::<S, R, G, 1>(
            simd,
            rows,
            if vector == 0 { ahead } else { Ahead::default() },
            picks,
            weights,
            stride,
            sums,
            channels,
            vector,
        );
        vector += 1;
    }
}

/// `G` heads by `N` vectors of channels, kept in registers over all picked rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Lanes, R: Rows, const G: usize, const N: usize>(
    simd: S,
    rows: R,
    ahead: Ahead,
    picks: &[u8],
    weights: &[f32],
    stride: usize,
    sums: &mut [f32],
    channels: usize,
    first: usize,
) {
    // Loops, not closures: what is not inlined into this function is compiled without its instructions.
    let at = |head: usize, vector: usize| head * channels + (first + vector) * lanes::<S>();
    let mut kept = [[S::f32s::splat(simd, 0.0); N]; G];
    let mut rows_of_weights = [&[][..]; G];
    for (head, (kept, row)) in kept.iter_mut().zip(&mut rows_of_weights).enumerate() {
        *row = &weights[head * stride..][..picks.len()];
        for (vector, kept) in kept.iter_mut().enumerate() {
            *kept = S::f32s::from_slice(simd, &sums[at(head, vector)..][..lanes::<S>()]);
        }
    }
    let mut ahead = ahead.steps(picks.len());
    for (i, pick) in picks.iter().enumerate() {
        let row = rows.row(usize::from(*pick), channels);
        ahead.prefetch(simd);
        let mut weight = [S::f32s::splat(simd, 0.0); G];
        for (weight, row) in weight.iter_mut().zip(rows_of_weights) {
            *weight = S::f32s::splat(simd, row[i]);
        }
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
