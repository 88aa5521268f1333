//! The two dense products of attention, `K Q` and `V^T P`, as one register-tiled kernel.
//!
//! Both have the form `c[r][lane] = sum_k a(r, k) * b[k][lane]` with lane-contiguous `b` and `c`: `a` is broadcast,
//! `b` is loaded, and a tile of `R` rows by `N` vectors of `c` stays in registers over the whole sum. For scores a row
//! is a key and `k` runs over its channels; for values a row is a channel and `k` runs over the keys.

use fearless_simd::prelude::*;

/// See [`super::SimdLevel::scores`].
#[inline(always)]
pub(super) fn scores<S: Simd>(simd: S, keys: &[f32], queries: &[f32], lanes: usize, out: &mut [f32]) {
    let head_dim = queries.len() / lanes;
    let rows = keys.len() / head_dim;
    out[..rows * lanes].fill(0.0);
    product(simd, rows, head_dim, queries, lanes, out, |row, channel| keys[row * head_dim + channel]);
}

/// See [`super::SimdLevel::accumulate`].
#[inline(always)]
pub(super) fn accumulate<S: Simd>(simd: S, values: &[f32], weights: &[f32], lanes: usize, out: &mut [f32]) {
    let head_dim = out.len() / lanes;
    let keys = weights.len() / lanes;
    product(simd, head_dim, keys, weights, lanes, out, |channel, key| values[key * head_dim + channel]);
}

/// `c += a b` for `c` of `[rows, lanes]` and `b` of `[depth, lanes]`; `lanes` is a multiple of the vector length.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    rows: usize,
    depth: usize,
    b: &[f32],
    lanes: usize,
    c: &mut [f32],
    a: impl Fn(usize, usize) -> f32 + Copy,
) {
    // Eight accumulators hide the latency of two FMAs a cycle and leave registers for `b` and the broadcast even
    // where there are only 16 registers.
    let mut lane = 0;
    while lane + 2 * S::f32s::LEN <= lanes {
        panel::<S, 4, 2>(simd, rows, depth, b, lanes, lane, c, a);
        lane += 2 * S::f32s::LEN;
    }
    if lane < lanes {
        panel::<S, 8, 1>(simd, rows, depth, b, lanes, lane, c, a);
    }
}

/// All rows of the `N` vectors that start at `lane`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Simd, const R: usize, const N: usize>(
    simd: S,
    rows: usize,
    depth: usize,
    b: &[f32],
    lanes: usize,
    lane: usize,
    c: &mut [f32],
    a: impl Fn(usize, usize) -> f32 + Copy,
) {
    let mut row = 0;
    while row + R <= rows {
        tile::<S, R, N>(simd, depth, b, lanes, lane, &mut c[row * lanes..], |r, k| a(row + r, k));
        row += R;
    }
    while row < rows {
        tile::<S, 1, N>(simd, depth, b, lanes, lane, &mut c[row * lanes..], |_, k| a(row, k));
        row += 1;
    }
}

/// `R` rows by `N` vectors, kept in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const N: usize>(
    simd: S,
    depth: usize,
    b: &[f32],
    lanes: usize,
    lane: usize,
    c: &mut [f32],
    a: impl Fn(usize, usize) -> f32,
) {
    let width = S::f32s::LEN;
    let mut sums = [[S::f32s::splat(simd, 0.0); N]; R];
    for (k, b) in b.chunks_exact(lanes).take(depth).enumerate() {
        let b = &b[lane..][..N * width];
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = S::f32s::splat(simd, a(r, k));
            for (sum, b) in sums.iter_mut().zip(b.chunks_exact(width)) {
                *sum = a.mul_add(S::f32s::from_slice(simd, b), *sum);
            }
        }
    }
    for (sums, c) in sums.iter().zip(c.chunks_mut(lanes)) {
        for (sum, c) in sums.iter().zip(c[lane..].chunks_exact_mut(width)) {
            (*sum + S::f32s::from_slice(simd, c)).store_slice(c);
        }
    }
}
