//! The two dense products of attention, `K Q` and `V^T P`, as one register-tiled kernel.
//!
//! Both have the form `c[r][lane] = sum_k a(r, k) * b[k][lane]` with lane-contiguous `b` and `c`: `a` is broadcast,
//! `b` is loaded, and a tile of `R` rows by `N` vectors of `c` stays in registers over the whole sum. For scores a row
//! is a key and `k` runs over its channels; for values a row is a channel and `k` runs over the keys.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, prefetch::prefetch_rows, tuning::TESTED_KEYS};

use super::{lanes::large_tiles, softmax::append_above};

/// `out[i][lane] = keys[selected[i]] . queries[..][lane]`: exact scores of some keys.
///
/// `keys` is `[keys, head_dim]`, `queries` `[head_dim, lanes]`, `out` `[selected, lanes]`.
pub(crate) fn scores(
    isa: Isa,
    keys: &[f32],
    selected: &[usize],
    queries: &[f32],
    lanes: usize,
    out: &mut [f32],
) {
    dispatch!(isa, simd => every_score(simd, keys, selected, queries, lanes, out));
}

/// The same, for the keys that are above the threshold (`[lanes]`) of any lane: `kept` says which of the selected they are, and
/// `out` begins with their scores.
#[expect(clippy::too_many_arguments, reason = "the operands of scores, and what is to survive")]
pub(crate) fn scores_above(
    isa: Isa,
    keys: &[f32],
    selected: &[usize],
    queries: &[f32],
    lanes: usize,
    thresholds: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    dispatch!(isa, simd => tested_scores(simd, keys, selected, queries, lanes, thresholds, out, kept));
}

/// `out[channel][lane] += sum over i of values[selected[i]][channel] * weights[i][lane]`.
///
/// `values` is `[keys, head_dim]`, `weights` `[selected, lanes]`, `out` `[head_dim, lanes]`.
pub(crate) fn accumulate(
    isa: Isa,
    values: &[f32],
    selected: &[usize],
    weights: &[f32],
    lanes: usize,
    out: &mut [f32],
) {
    dispatch!(isa, simd => add_values(simd, values, selected, weights, lanes, out));
}

#[inline(always)]
fn every_score<S: Simd>(
    simd: S,
    keys: &[f32],
    selected: &[usize],
    queries: &[f32],
    lanes: usize,
    out: &mut [f32],
) {
    let head_dim = queries.len() / lanes;
    let keys = SelectedRows { data: keys, selected, head_dim };
    product::<S, false>(simd, selected.len(), head_dim, keys, queries, lanes, out);
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of scores, and what is to survive")]
fn tested_scores<S: Simd>(
    simd: S,
    keys: &[f32],
    selected: &[usize],
    queries: &[f32],
    lanes: usize,
    thresholds: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    kept.clear();
    for (part, selected) in selected.chunks(TESTED_KEYS).enumerate() {
        let out = &mut out[kept.len() * lanes..][..selected.len() * lanes];
        every_score(simd, keys, selected, queries, lanes, out);
        append_above(simd, out, thresholds, part * TESTED_KEYS, kept);
    }
}

#[inline(always)]
fn add_values<S: Simd>(
    simd: S,
    values: &[f32],
    selected: &[usize],
    weights: &[f32],
    lanes: usize,
    out: &mut [f32],
) {
    let head_dim = out.len() / lanes;
    // Values are read across, a little of each at a time: none is there yet when it is first needed.
    prefetch_rows(values, selected, head_dim);
    let values = SelectedColumns { data: values, selected, head_dim };
    product::<S, true>(simd, head_dim, selected.len(), values, weights, lanes, out);
}

/// The broadcast factor `a`, `[rows, depth]`, cut so that the inner loop has few bounds to check.
trait Broadcast: Copy {
    /// Column `k` of the `R` rows from `row` on, as a function of `k`.
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R];

    /// Asks for the `R` rows from `row` on, as many of them as there are.
    fn prefetch<const R: usize>(self, _row: usize) {}
}

/// Rows of `a` are those of the `selected` among keys of `[keys, head_dim]`.
#[derive(Clone, Copy)]
struct SelectedRows<'a> {
    data: &'a [f32],
    selected: &'a [usize],
    head_dim: usize,
}

impl Broadcast for SelectedRows<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R] {
        let mut rows = [&[][..]; R];
        for (keys, index) in rows.iter_mut().zip(&self.selected[row..][..R]) {
            *keys = &self.data[index * self.head_dim..][..self.head_dim];
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

    #[inline(always)]
    fn prefetch<const R: usize>(self, row: usize) {
        let end = self.selected.len().min(row + R);
        prefetch_rows(self.data, &self.selected[row.min(end)..end], self.head_dim);
    }
}

/// Columns of `a` are those of the `selected` among values of `[keys, head_dim]`, read across.
#[derive(Clone, Copy)]
struct SelectedColumns<'a> {
    data: &'a [f32],
    selected: &'a [usize],
    head_dim: usize,
}

impl Broadcast for SelectedColumns<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [f32; R] {
        #[inline(always)]
        move |k| {
            let mut column = [0.0; R];
            column.copy_from_slice(&self.data[self.selected[k] * self.head_dim + row..][..R]);
            column
        }
    }
}

/// `c = a b`, or `c += a b` if `ADD`, for `c` of `[rows, lanes]` and `b` of `[depth, lanes]`; `lanes` is a multiple of the vector length.
///
/// The tile of `c` has to hide the latency of two FMAs a cycle, which takes 8 accumulators, and to need few loads for
/// each FMA, which takes more: 24 of 32 registers (AVX-512, NEON), 12 of 16 (AVX2), the others being for `b` and one
/// broadcast.
#[inline(always)]
fn product<S: Simd, const ADD: bool>(
    simd: S,
    rows: usize,
    depth: usize,
    a: impl Broadcast,
    b: &[f32],
    lanes: usize,
    c: &mut [f32],
) {
    let mut lane = 0;
    while lane < lanes {
        let vectors = (lanes - lane) / S::f32s::LEN;
        lane += S::f32s::LEN
            * match vectors {
                _ if const { !large_tiles::<S>() } => {
                    panel::<S, 4, 1, ADD>(simd, rows, depth, a, b, lanes, lane, c)
                }
                1 => panel::<S, 8, 1, ADD>(simd, rows, depth, a, b, lanes, lane, c),
                // 256-bit vectors: 16 registers.
                _ if S::f32s::LEN == 8 && vectors.is_multiple_of(3) => {
                    panel::<S, 4, 3, ADD>(simd, rows, depth, a, b, lanes, lane, c)
                }
                _ if S::f32s::LEN == 8 => panel::<S, 4, 2, ADD>(simd, rows, depth, a, b, lanes, lane, c),
                2 => panel::<S, 8, 2, ADD>(simd, rows, depth, a, b, lanes, lane, c),
                3 => panel::<S, 8, 3, ADD>(simd, rows, depth, a, b, lanes, lane, c),
                _ if vectors.is_multiple_of(6) => {
                    panel::<S, 4, 6, ADD>(simd, rows, depth, a, b, lanes, lane, c)
                }
                _ => panel::<S, 6, 4, ADD>(simd, rows, depth, a, b, lanes, lane, c),
            };
    }
}

/// All rows of the `N` vectors that start at `lane`; answers `N`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product and their strides")]
fn panel<S: Simd, const R: usize, const N: usize, const ADD: bool>(
    simd: S,
    rows: usize,
    depth: usize,
    a: impl Broadcast,
    b: &[f32],
    lanes: usize,
    lane: usize,
    c: &mut [f32],
) -> usize {
    let mut row = 0;
    while row + R <= rows {
        a.prefetch::<R>(row + R);
        tile::<S, R, N, ADD>(simd, depth, a.strip(row), b, lanes, lane, &mut c[row * lanes..]);
        row += R;
    }
    if R > 4 && row + 4 <= rows {
        tile::<S, 4, N, ADD>(simd, depth, a.strip(row), b, lanes, lane, &mut c[row * lanes..]);
        row += 4;
    }
    while row < rows {
        tile::<S, 1, N, ADD>(simd, depth, a.strip(row), b, lanes, lane, &mut c[row * lanes..]);
        row += 1;
    }
    N
}

/// `R` rows by `N` vectors, kept in registers: every loop over them has a constant count, or they would be kept in memory.
#[inline(always)]
fn tile<S: Simd, const R: usize, const N: usize, const ADD: bool>(
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
    for (k, b) in b.chunks_exact(lanes).enumerate().take(depth) {
        let b = &b[lane..][..N * width];
        let mut columns = [S::f32s::splat(simd, 0.0); N];
        for n in 0..N {
            columns[n] = S::f32s::from_slice(simd, &b[n * width..][..width]);
        }
        let a = a(k);
        for r in 0..R {
            let a = S::f32s::splat(simd, a[r]);
            for n in 0..N {
                sums[r][n] = a.mul_add(columns[n], sums[r][n]);
            }
        }
    }
    for r in 0..R {
        let c = &mut c[r * lanes + lane..][..N * width];
        for n in 0..N {
            let c = &mut c[n * width..][..width];
            let sum = if ADD { sums[r][n] + S::f32s::from_slice(simd, c) } else { sums[r][n] };
            sum.store_slice(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use deltallm_testing::numbers;

    use super::*;

    #[test]
    fn tested_scores_are_the_scores_that_pass() {
        let (head_dim, lanes) = (20, 96);
        let (keys, queries) = (numbers(64 * head_dim, 1), numbers(head_dim * lanes, 2));
        for isa in Isa::available() {
            for count in [0, 1, 3, 23, 24, 25, 48, 61] {
                let selected: Vec<usize> = (0..count).map(|i| i + i / 30).collect();
                let mut all = vec![0.0; count * lanes];
                scores(isa, &keys, &selected, &queries, lanes, &mut all);
                // None passes, some do, all do.
                for limit in [1e30, 4.0, -1e30] {
                    let thresholds = vec![limit; lanes];
                    let (mut some, mut kept) = (vec![0.0; count * lanes], Vec::new());
                    scores_above(isa, &keys, &selected, &queries, lanes, &thresholds, &mut some, &mut kept);
                    let pass = |row: &usize| all[row * lanes..][..lanes].iter().any(|score| *score > limit);
                    let expected: Vec<usize> = (0..count).filter(pass).collect();
                    assert_eq!(kept, expected, "{isa}, {count} keys, {limit}");
                    for (i, row) in kept.iter().enumerate() {
                        let (got, expected) = (&some[i * lanes..][..lanes], &all[row * lanes..][..lanes]);
                        assert_eq!(got, expected, "{isa}, {count} keys");
                    }
                    assert!(count < 61 || limit != 4.0 || (1..count).contains(&kept.len()), "{}", kept.len());
                    assert!(limit == 4.0 || kept.len() == if limit > 0.0 { 0 } else { count });
                }
            }
        }
    }
}
