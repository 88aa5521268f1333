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
    product(simd, rows, head_dim, Keys { data: keys, head_dim }, queries, lanes, out);
}

/// See [`super::SimdLevel::accumulate`].
#[inline(always)]
pub(super) fn accumulate<S: Simd>(simd: S, values: &[f32], weights: &[f32], lanes: usize, out: &mut [f32]) {
    let head_dim = out.len() / lanes;
    let keys = weights.len() / lanes;
    product(simd, head_dim, keys, Values { data: values, head_dim }, weights, lanes, out);
}

/// The broadcast factor `a`, `[rows, depth]`, cut so that the inner loop has few bounds to check.
trait Broadcast: Copy {
    /// Column `k` of the `R` rows from `row` on, as a function of `k`.
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R];
}

/// Rows of `a` are keys: `[keys, head_dim]`.
#[derive(Clone, Copy)]
struct Keys<'a> {
    data: &'a [f32],
    head_dim: usize,
}

impl Broadcast for Keys<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R] {
        let mut rows = [&[][..]; R];
        for (r, keys) in rows.iter_mut().enumerate() {
            *keys = &self.data[(row + r) * self.head_dim..][..self.head_dim];
        }
        #[inline(always)]
        move |k| {
            let mut column = [0.0; R];
            for (a, keys) in column.iter_mut().zip(&rows) {
                *a = keys[k];
            }
            column
        }
    }
}

/// Columns of `a` are values: `[keys, head_dim]`, read across.
#[derive(Clone, Copy)]
struct Values<'a> {
    data: &'a [f32],
    head_dim: usize,
}

impl Broadcast for Values<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R] {
        #[inline(always)]
        move |k| {
            let mut column = [0.0; R];
            column.copy_from_slice(&self.data[k * self.head_dim + row..][..R]);
            column
        }
    }
}

/// `c += a b` for `c` of `[rows, lanes]` and `b` of `[depth, lanes]`; `lanes` is a multiple of the vector length.
#[inline(always)]
fn product<S: Simd>(
    simd: S,
    rows: usize,
    depth: usize,
    a: impl Broadcast,
    b: &[f32],
    lanes: usize,
    c: &mut [f32],
) {
    // Eight accumulators hide the latency of two FMAs a cycle and leave registers for `b` and the broadcast even
    // where there are only 16 registers.
    let mut lane = 0;
    while lane + 2 * S::f32s::LEN <= lanes {
        panel::<S, 4, 2>(simd, rows, depth, a, b, lanes, lane, c);
        lane += 2 * S::f32s::LEN;
    }
    if lane < lanes {
        panel::<S, 8, 1>(simd, rows, depth, a, b, lanes, lane, c);
    }
}

/// All rows of the `N` vectors that start at `lane`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Simd, const R: usize, const N: usize>(
    simd: S,
    rows: usize,
    depth: usize,
    a: impl Broadcast,
    b: &[f32],
    lanes: usize,
    lane: usize,
    c: &mut [f32],
) {
    let mut row = 0;
    while row + R <= rows {
        tile::<S, R, N>(simd, depth, a.strip(row), b, lanes, lane, &mut c[row * lanes..]);
        row += R;
    }
    while row < rows {
        tile::<S, 1, N>(simd, depth, a.strip(row), b, lanes, lane, &mut c[row * lanes..]);
        row += 1;
    }
}

/// `R` rows by `N` vectors, kept in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const N: usize>(
    simd: S,
    depth: usize,
    a: impl Fn(usize) -> [f32; R],
    b: &[f32],
    lanes: usize,
    lane: usize,
    c: &mut [f32],
) {
    let width = S::f32s::LEN;
    let mut sums = [[S::f32s::splat(simd, 0.0); N]; R];
    for k in 0..depth {
        let b_row = &b[k * lanes + lane..][..N * width];
        let mut b = [S::f32s::splat(simd, 0.0); N];
        for (b, row) in b.iter_mut().zip(b_row.chunks_exact(width)) {
            *b = S::f32s::from_slice(simd, row);
        }
        for (a, sums) in a(k).into_iter().zip(&mut sums) {
            let a = S::f32s::splat(simd, a);
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
    for (sums, c) in sums.iter().zip(c.chunks_mut(lanes)) {
        for (sum, c) in sums.iter().zip(c[lane..].chunks_exact_mut(width)) {
            (*sum + S::f32s::from_slice(simd, c)).store_slice(c);
        }
    }
}
