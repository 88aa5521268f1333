//! Scores of rows of keys: the dot products of each with the queries of a group.

use fearless_simd::prelude::*;

use super::{
    ahead::Ahead,
    lanes::Lanes,
    rows::{Row, Rows, lanes},
};

/// `out[head * stride + row] = queries[head] . rows[row]` for `count` rows; `queries` is `[heads, channels]`, and
/// `channels` a multiple of the vector length. Meanwhile the memory `ahead` is asked for.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
pub(super) fn dots<S: Lanes, R: Rows>(
    simd: S,
    rows: R,
    ahead: Ahead,
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
        let ahead = if head == 0 { ahead } else { Ahead::default() };
        match pass {
            1 => panel::<S, R, 1>(simd, rows, ahead, count, queries, channels, out, stride),
            2 if const { S::HEADS >= 2 } => {
                panel::<S, R, 2>(simd, rows, ahead, count, queries, channels, out, stride)
            }
            3 if const { S::HEADS >= 3 } => {
                panel::<S, R, 3>(simd, rows, ahead, count, queries, channels, out, stride)
            }
            4 if const { S::HEADS >= 4 } => {
                panel::<S, R, 4>(simd, rows, ahead, count, queries, channels, out, stride)
            }
            // Not reached: a pass has at most `HEADS` heads, which no level has more than four of.
            _ => {}
        }
        head += pass;
    }
}

/// `G` heads: four rows at a time, so that the converted rows serve all heads and the sums over the lanes are shared.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Lanes, R: Rows, const G: usize>(
    simd: S,
    rows: R,
    ahead: Ahead,
    count: usize,
    queries: &[f32],
    channels: usize,
    out: &mut [f32],
    stride: usize,
) {
    // Loops, not closures: what is not inlined into this function is compiled without its instructions.
    let mut rows_of_queries = [&[][..]; G];
    for (head, query) in rows_of_queries.iter_mut().enumerate() {
        *query = &queries[head * channels..][..channels];
    }
    let queries = rows_of_queries;
    let mut ahead = ahead.steps(count.div_ceil(4));
    for first in (0..count).step_by(4) {
        let here = (count - first).min(4);
        ahead.prefetch(simd);
        // The last rows stand in for those that would follow them.
        let at = |i: usize| rows.row(first + i.min(here - 1), channels);
        let four = [at(0), at(1), at(2), at(3)];
        let mut sums = [[S::f32s::splat(simd, 0.0); 4]; G];
        for vector in 0..channels / lanes::<S>() {
            let mut query = [S::f32s::splat(simd, 0.0); G];
            for (query, row) in query.iter_mut().zip(queries) {
                *query = row.vector(simd, vector);
            }
            for (i, row) in four.iter().enumerate() {
                let key = row.vector(simd, vector);
                for (sums, query) in sums.iter_mut().zip(query) {
                    sums[i] = key.mul_add(query, sums[i]);
                }
            }
        }
        for (sums, out) in sums.into_iter().zip(out.chunks_mut(stride)) {
            // A copy of a length that is not known would be a call.
            for (out, sum) in out[first..][..here].iter_mut().zip(simd.sums(sums)) {
                *out = sum;
            }
        }
    }
}
