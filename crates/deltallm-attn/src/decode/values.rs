//! The weighted sum of rows of values.

use deltallm_simd::fearless_simd::prelude::*;

use super::{
    ahead::Ahead,
    lanes::Lanes,
    passes::Pass,
    rows::{Row, Rows, lanes},
};
use crate::decode::BLOCK;

/// `sums[head] += sum over i of weights[head * BLOCK + i] * rows[picks[i]]`.
pub(super) struct Weighted<'a, R> {
    pub(super) rows: R,
    pub(super) picks: &'a [u8],
    /// Memory to ask for meanwhile.
    pub(super) ahead: Ahead,
    /// `[heads, BLOCK]`, or from the weight of the first pick on.
    pub(super) weights: &'a [f32],
    /// `[heads, channels]`.
    pub(super) sums: &'a mut [f32],
    /// A multiple of the vector length.
    pub(super) channels: usize,
}

impl<S: Lanes, R: Rows> Pass<S> for Weighted<'_, R> {
    /// Four vectors of channels at a time, or two where the registers hold no more sums.
    #[inline(always)]
    fn pass<const G: usize>(&mut self, simd: S, head: usize) {
        let vectors = self.channels / lanes::<S>();
        let mut vector = 0;
        // The sums, the weights, a value, and what the rows need.
        let four = const { 4 * G + G + 1 + R::HELD <= S::REGISTERS };
        while four && vector + 4 <= vectors {
            self.panel::<S, G, 4>(simd, head, vector);
            vector += 4;
        }
        while !four && vector + 2 <= vectors {
            self.panel::<S, G, 2>(simd, head, vector);
            vector += 2;
        }
        while vector < vectors {
            self.panel::<S, G, 1>(simd, head, vector);
            vector += 1;
        }
    }
}

impl<R: Rows> Weighted<'_, R> {
    /// `G` heads by `N` vectors of channels, kept in registers over all picked rows.
    #[inline(always)]
    fn panel<S: Lanes, const G: usize, const N: usize>(&mut self, simd: S, head: usize, first: usize) {
        // Loops, not closures: what is not inlined into this function is compiled without its instructions.
        let (rows, picks, channels) = (self.rows, self.picks, self.channels);
        let mut kept = [[S::f32s::splat(simd, 0.0); N]; G];
        let mut rows_of_weights = [&[][..]; G];
        for (i, (kept, row)) in kept.iter_mut().zip(&mut rows_of_weights).enumerate() {
            *row = &self.weights[(head + i) * BLOCK..][..picks.len()];
            let sums = &self.sums[(head + i) * channels + first * lanes::<S>()..][..N * lanes::<S>()];
            for (kept, sums) in kept.iter_mut().zip(sums.chunks_exact(lanes::<S>())) {
                *kept = S::f32s::from_slice(simd, sums);
            }
        }
        let mut ahead = std::mem::take(&mut self.ahead).steps(picks.len());
        for (i, pick) in picks.iter().enumerate() {
            let row = rows.row(usize::from(*pick), channels);
            ahead.prefetch();
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
        for (i, kept) in kept.iter().enumerate() {
            let sums = &mut self.sums[(head + i) * channels + first * lanes::<S>()..][..N * lanes::<S>()];
            for (kept, sums) in kept.iter().zip(sums.chunks_exact_mut(lanes::<S>())) {
                kept.store_slice(sums);
            }
        }
    }
}
