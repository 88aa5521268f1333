//! Scores of rows of keys: the dot products of each with the queries of a group.

use deltallm_core::BLOCK_TOKENS;
use deltallm_simd::fearless_simd::prelude::*;

use super::{
    ahead::Ahead,
    decode_simd::{DecodeSimd, width},
    passes::Pass,
    rows::{VectorRow, VectorRows},
};

/// `out[head * BLOCK_TOKENS + row] = queries[head] . rows[row]` for `count` rows.
pub(crate) struct RowScores<'a, R> {
    pub(crate) rows: R,
    pub(crate) count: usize,
    /// Memory to ask for meanwhile.
    pub(crate) ahead: Ahead,
    /// `[heads, channels]`.
    pub(crate) queries: &'a [f32],
    /// A multiple of the vector length.
    pub(crate) channels: usize,
    /// `[heads, BLOCK_TOKENS]`, or from the block's key on that the first row is.
    pub(crate) out: &'a mut [f32],
}

impl<S: DecodeSimd, R: VectorRows> Pass<S> for RowScores<'_, R> {
    /// Four rows at a time, so that the converted rows serve all heads and the sums over the lanes are shared.
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: S, head: usize) {
        // Loops, not closures: what is not inlined into this function is compiled without its instructions.
        let (channels, count) = (self.channels, self.count);
        let mut queries = [&[][..]; G];
        for (i, query) in queries.iter_mut().enumerate() {
            *query = &self.queries[(head + i) * channels..][..channels];
        }
        let mut ahead = std::mem::take(&mut self.ahead).steps(count.div_ceil(4));
        for first in (0..count).step_by(4) {
            let here = (count - first).min(4);
            ahead.prefetch();
            // The last rows stand in for those that would follow them.
            let rows = self.rows;
            let at = |i: usize| rows.row(first + i.min(here - 1), channels);
            let four = [at(0), at(1), at(2), at(3)];
            let mut sums = [[S::f32s::splat(simd, 0.0); 4]; G];
            for vector in 0..channels / width::<S>() {
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
            for (sums, out) in sums.into_iter().zip(self.out[head * BLOCK_TOKENS..].chunks_mut(BLOCK_TOKENS))
            {
                store(&mut out[first..], simd.sums(sums), here);
            }
        }
    }
}

/// Stores the first `here` of four scores.
#[inline(always)]
pub(crate) fn store(out: &mut [f32], scores: [f32; 4], here: usize) {
    match out.first_chunk_mut() {
        Some(out) if here == 4 => *out = scores,
        // A copy of a length that is not known would be a call.
        _ => out.iter_mut().zip(scores).take(here).for_each(|(out, score)| *out = score),
    }
}
