//! Scores of rows of keys: the dot products of each with the queries of a group.

use fearless_simd::prelude::*;

use super::{
    lanes::Lanes,
    rows::{Row, Rows, lanes},
};

/// `out[head * stride + row] = queries[head] . rows[row]` for `count` rows; `queries` is `[heads, channels]`, and
/// `channels` a multiple of the vector length.
#[inline(always)]
pub(super) fn dots<S: Lanes>(
    simd: S,
    rows: impl Rows,
    count: usize,
    queries: &[f32],
    channels: usize,
    out: &mut [f32],
    stride: usize,
) {
    let heads = queries.len() / channels;
    let mut head = 0;
    while head < heads {
        // As even as possible: 5 heads are better 3 + 2 than 4 + 1.
        let passes = (heads - head).div_ceil(S::HEADS);
        let pass = (heads - head).div_ceil(passes);
        let (queries, out) = (&queries[head * channels..], &mut out[head * stride..]);
        match pass {
            1 => panel::<S, 1>(simd, rows, count, queries, channels, out, stride),
            2 => panel::<S, 2>(simd, rows, count, queries, channels, out, stride),
            3 => panel::<S, 3>(simd, rows, count, queries, channels, out, stride),
            _ => panel::<S, 4>(simd, rows, count, queries, channels, out, stride),
        }
        head += pass.min(4);
    }
}

/// `G` heads: four rows at a time, so that the converted rows serve all heads and the sums over the lanes are shared.
#[inline(always)]
fn panel<S: Lanes, const G: usize>(
    simd: S,
    rows: impl Rows,
    count: usize,
    queries: &[f32],
    channels: usize,
    out: &mut [f32],
    stride: usize,
) {
    let queries: [&[f32]; G] = std::array::from_fn(|head| &queries[head * channels..][..channels]);
    for first in (0..count).step_by(4) {
        let here = (count - first).min(4);
        // The last rows stand in for those that would follow them.
        let four: [_; 4] = std::array::from_fn(|i| rows.row(first + i.min(here - 1), channels));
        let mut sums = [[S::f32s::splat(simd, 0.0); 4]; G];
        for vector in 0..channels / lanes::<S>() {
            let query: [S::f32s; G] = std::array::from_fn(|head| queries[head].vector(simd, vector));
            for (i, row) in four.iter().enumerate() {
                let key = row.vector(simd, vector);
                for (sums, query) in sums.iter_mut().zip(query) {
                    sums[i] = key.mul_add(query, sums[i]);
                }
            }
        }
        for (sums, out) in sums.into_iter().zip(out.chunks_mut(stride)) {
            out[first..][..here].copy_from_slice(&simd.sums(sums)[..here]);
        }
    }
}
