//! The products of pairs of bf16 with the dot product of Arm's bf16 extension, `bfdot`.

use deltallm_simd::{
    fearless_simd::{f32x4, prelude::*, u32x4},
    features::Bf16Dot,
};
use half::bf16;

use crate::prefill::pairs::operands::{PairKeys, PairQueries, PairValues, keep_above, key_len};

/// Lanes of a vector.
const WIDTH: usize = 4;

/// See [`crate::prefill::pairs::Pairs::push_keys`].
pub(crate) fn push_keys(keys: &[f32], head_dim: usize, out: &mut PairKeys) {
    let len = key_len(head_dim);
    let start = out.rows.len();
    out.rows.resize(start + keys.len() / head_dim * len, 0);
    for (row, key) in out.rows[start..].chunks_exact_mut(len).zip(keys.chunks_exact(head_dim)) {
        row.iter_mut().zip(key).for_each(|(bits, x)| *bits = bits_of(*x));
    }
}

/// See [`crate::prefill::pairs::Pairs::values`].
pub(crate) fn values(values: &[f32]) -> PairValues {
    PairValues { rows: values.iter().map(|x| bits_of(*x)).collect(), scales: Vec::new() }
}

/// Pairs of rows: from `[rows, lanes]` to `[rows / 2, lanes]`.
pub(crate) fn pack(rows: &[f32], lanes: usize, out: &mut Vec<u32>) {
    out.resize((rows.len() / lanes).div_ceil(2) * lanes, 0);
    for (pair, out) in rows.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
        let (first, second) = pair.split_at(lanes);
        for (lane, out) in out.iter_mut().enumerate() {
            let second = second.get(lane).map_or(0, |x| bits_of(*x));
            *out = u32::from(bits_of(first[lane])) | u32::from(second) << 16;
        }
    }
}

/// The bits of `x` rounded to bf16.
fn bits_of(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

/// See [`crate::prefill::pairs::Pairs::scores`].
pub(crate) fn scores(
    token: Bf16Dot,
    keys: &PairKeys,
    selected: &[usize],
    queries: &PairQueries,
    thresholds: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let lanes = queries.scales.len();
    let depth = queries.pairs.len() / lanes;
    let keys = SelectedRows { pairs: keys.rows.as_chunks().0, selected, depth };
    let out_rows = &mut out[..selected.len() * lanes];
    token.vectorize(
        #[inline(always)]
        || product::<false>(token, keys, [selected.len(), depth], &queries.pairs, lanes, out_rows),
    );
    kept.extend(0..selected.len());
    if let Some(limits) = thresholds {
        keep_above(limits, out, kept);
    }
}

/// See [`crate::prefill::pairs::Pairs::accumulate`].
pub(crate) fn accumulate(token: Bf16Dot, values: &[u32], weights: &[u32], lanes: usize, out: &mut [f32]) {
    let (head_dim, depth) = (out.len() / lanes, weights.len() / lanes);
    let values = SelectedColumns { pairs: values, head_dim };
    token.vectorize(
        #[inline(always)]
        || product::<true>(token, values, [head_dim, depth], weights, lanes, out),
    );
}

/// The factor that is broadcast, rows of pairs.
trait Broadcast: Copy {
    /// Pair `k` of the `R` rows from `row` on, as a function of `k`.
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [u32; R];
}

/// The rows of some keys.
#[derive(Clone, Copy)]
struct SelectedRows<'a> {
    /// `[tokens, depth]`.
    pairs: &'a [[u16; 2]],
    selected: &'a [usize],
    depth: usize,
}

impl Broadcast for SelectedRows<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [u32; R] {
        let mut rows = [&[][..]; R];
        for (keys, index) in rows.iter_mut().zip(&self.selected[row..][..R]) {
            *keys = &self.pairs[index * self.depth..][..self.depth];
        }
        #[inline(always)]
        move |k| {
            let mut column = [0; R];
            for (pair, keys) in column.iter_mut().zip(&rows) {
                *pair = u32::from(keys[k][0]) | u32::from(keys[k][1]) << 16;
            }
            column
        }
    }
}

/// The channels of values, `[depth, head_dim]`.
#[derive(Clone, Copy)]
struct SelectedColumns<'a> {
    pairs: &'a [u32],
    head_dim: usize,
}

impl Broadcast for SelectedColumns<'_> {
    #[inline(always)]
    fn strip<const R: usize>(self, row: usize) -> impl Fn(usize) -> [u32; R] {
        #[inline(always)]
        move |k| {
            let mut column = [0; R];
            column.copy_from_slice(&self.pairs[k * self.head_dim + row..][..R]);
            column
        }
    }
}

/// `out[row] = a[row] . b`, or `+=` with `ADD`: `a` is `[rows, depth]`, `b` `[depth, lanes]`, with lanes in whole vectors, and `out` `[rows,
/// lanes]`.
#[inline(always)]
fn product<const ADD: bool>(
    token: Bf16Dot,
    a: impl Broadcast,
    shape: [usize; 2],
    b: &[u32],
    lanes: usize,
    out: &mut [f32],
) {
    let mut lane = 0;
    while lane < lanes {
        lane += WIDTH
            * match (lanes - lane) / WIDTH {
                1 => panel::<ADD, 1>(token, a, shape, b, lanes, lane, out),
                2 => panel::<ADD, 2>(token, a, shape, b, lanes, lane, out),
                3 => panel::<ADD, 3>(token, a, shape, b, lanes, lane, out),
                _ => panel::<ADD, 4>(token, a, shape, b, lanes, lane, out),
            };
    }
}

/// All rows of the `N` vectors at `lane`, four at a time; answers `N`.
#[inline(always)]
fn panel<const ADD: bool, const N: usize>(
    token: Bf16Dot,
    a: impl Broadcast,
    [rows, depth]: [usize; 2],
    b: &[u32],
    lanes: usize,
    lane: usize,
    out: &mut [f32],
) -> usize {
    let mut row = 0;
    while row + 4 <= rows {
        tile::<ADD, 4, N>(token, a.strip(row), depth, b, lanes, lane, &mut out[row * lanes..]);
        row += 4;
    }
    while row < rows {
        tile::<ADD, 1, N>(token, a.strip(row), depth, b, lanes, lane, &mut out[row * lanes..]);
        row += 1;
    }
    N
}

/// `R` rows by `N` vectors of sums, kept in registers: every loop over them has a constant count.
#[inline(always)]
fn tile<const ADD: bool, const R: usize, const N: usize>(
    token: Bf16Dot,
    a: impl Fn(usize) -> [u32; R],
    depth: usize,
    b: &[u32],
    lanes: usize,
    lane: usize,
    out: &mut [f32],
) {
    let simd = token.neon();
    let mut sums = [[f32x4::splat(simd, 0.0); N]; R];
    for (k, b) in b.chunks_exact(lanes).enumerate().take(depth) {
        let b = &b[lane..][..N * WIDTH];
        let mut columns = [u32x4::splat(simd, 0); N];
        for n in 0..N {
            columns[n] = u32x4::from_slice(simd, &b[n * WIDTH..][..WIDTH]);
        }
        let a = a(k);
        for r in 0..R {
            let pair = u32x4::splat(simd, a[r]);
            for n in 0..N {
                sums[r][n] = token.dot(sums[r][n], pair, columns[n]);
            }
        }
    }
    for r in 0..R {
        let out = &mut out[r * lanes + lane..][..N * WIDTH];
        for n in 0..N {
            let out = &mut out[n * WIDTH..][..WIDTH];
            let sum = if ADD { f32x4::from_slice(simd, out) + sums[r][n] } else { sums[r][n] };
            sum.store_slice(out);
        }
    }
}
