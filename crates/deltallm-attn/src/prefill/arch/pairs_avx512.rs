//! The products of pairs of integers with the dot-product instruction of AVX512-VNNI, `vpdpwssd`.
//!
//! The tiles are those of `matmul`: 24 sums in registers, for 4 rows and all 96 lanes, or 6 rows and 64 lanes.

use std::arch::x86_64::*;

use deltallm_simd::fearless_simd::Avx512;

use crate::prefill::pairs::operands::{LARGEST_WEIGHT, PairKeys, PairQueries, keep_above};

/// f32 or pairs in a vector.
const WIDTH: usize = 16;

/// What a product `c = a b` is made of besides the rows of `a`, which is broadcast pair by pair; `b` is read in vectors.
#[derive(Clone, Copy)]
struct Operands<'a> {
    /// From one pair of a row of `a` to the next.
    pair_stride: usize,
    /// `[depth, lanes]`.
    b: &'a [u32],
    lanes: usize,
    depth: usize,
}

/// See [`crate::prefill::pairs::Pairs::scores`]. Panics for sizes that do not fit: the kernels below rely on them.
pub(crate) fn scores(
    _: Avx512,
    keys: &PairKeys,
    selected: &[usize],
    queries: &PairQueries,
    thresholds: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let lanes = queries.scales.len();
    let depth = queries.pairs.len() / lanes;
    let tokens = keys.rows.len() / (2 * depth);
    assert!(lanes.is_multiple_of(WIDTH) && queries.pairs.len() == depth * lanes);
    assert!(selected.iter().all(|index| *index < tokens) && out.len() >= selected.len() * lanes);
    assert!(keys.scales.len() == tokens);
    assert!(thresholds.is_none_or(|thresholds| thresholds.len() == lanes));
    let operands = Operands { pair_stride: 1, b: &queries.pairs, lanes, depth };
    let scores = Scores { keys, selected, operands, query_scales: &queries.scales, thresholds };
    // SAFETY: the CPU has the instructions (the token is the proof). The selected are keys of `depth` pairs;
    // scales, `b` and `out` have the lengths checked above.
    unsafe { score_tiles(scores, out, kept) }
}

/// See [`crate::prefill::pairs::Pairs::accumulate`]. Panics for sizes that do not fit.
pub(crate) fn accumulate(
    _: Avx512,
    values: &[u32],
    scales: &[f32],
    weights: &[u32],
    lanes: usize,
    out: &mut [f32],
) {
    let (head_dim, depth) = (out.len() / lanes, weights.len() / lanes);
    assert!(lanes.is_multiple_of(WIDTH) && out.len() == head_dim * lanes && weights.len() == depth * lanes);
    assert!(values.len() == head_dim * depth && scales.len() == head_dim);
    let operands = Operands { pair_stride: head_dim, b: weights, lanes, depth };
    // SAFETY: as in `scores`; `values` has `depth` pairs for each channel, and each has a scale.
    unsafe { accumulate_tiles(operands, values, scales, out) }
}

/// See [`crate::prefill::pairs::Pairs::pack`]. Panics for sizes that do not fit.
pub(crate) fn pack(_: Avx512, rows: &[f32], lanes: usize, factors: &[f32], out: &mut [u32]) {
    let count = rows.len() / lanes;
    assert!(lanes.is_multiple_of(WIDTH) && rows.len() == count * lanes);
    assert!(factors.len() == lanes && out.len() == count.div_ceil(2) * lanes);
    // SAFETY: as in `scores`: the CPU has the instructions, and the lengths were checked above.
    unsafe { pack_rows(rows, lanes, factors, out) }
}

/// The product of keys and queries, and what is wanted of it.
#[derive(Clone, Copy)]
struct Scores<'a> {
    keys: &'a PairKeys,
    selected: &'a [usize],
    operands: Operands<'a>,
    query_scales: &'a [f32],
    thresholds: Option<&'a [f32]>,
}

impl Scores<'_> {
    /// Where the selected keys from `row` on stand.
    ///
    /// # Safety
    /// There are `R` selected keys from `row` on, and every one of them is a key of `depth` pairs.
    #[inline(always)]
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const u32; R] {
        let (keys, depth) = (self.keys.rows.as_ptr().cast::<u32>(), self.operands.depth);
        let mut rows = [keys; R];
        for r in 0..R {
            // SAFETY: `row + r` is the place of a selected key, and its index counts keys of `depth` pairs, so that its first pair is there.
            rows[r] = unsafe { keys.add(self.selected.get_unchecked(row + r) * depth) };
        }
        rows
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`scores`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn score_tiles(scores: Scores, out: &mut [f32], kept: &mut Vec<usize>) {
    // SAFETY: the features are those of this function, and the sizes are checked. `survivors` gets the number of vectors that all
    // lanes are, `every_score` no more than are left at `lane`.
    unsafe {
        match (scores.operands.lanes / WIDTH, scores.thresholds) {
            (6, Some(limits)) => survivors::<4, 6>(scores, limits, out, kept),
            (4, Some(limits)) => survivors::<6, 4>(scores, limits, out, kept),
            (3, Some(limits)) => survivors::<8, 3>(scores, limits, out, kept),
            (2, Some(limits)) => survivors::<8, 2>(scores, limits, out, kept),
            (1, Some(limits)) => survivors::<8, 1>(scores, limits, out, kept),
            (_, limits) => {
                let mut lane = 0;
                while lane < scores.operands.lanes {
                    lane += WIDTH
                        * match (scores.operands.lanes - lane) / WIDTH {
                            1 => every_score::<8, 1>(scores, lane, out),
                            2 => every_score::<8, 2>(scores, lane, out),
                            3 => every_score::<8, 3>(scores, lane, out),
                            6 => every_score::<4, 6>(scores, lane, out),
                            _ => every_score::<6, 4>(scores, lane, out),
                        };
                }
                kept.extend(0..scores.selected.len());
                if let Some(limits) = limits {
                    keep_above(limits, out, kept);
                }
            }
        }
    }
}

/// All scores of the `N` vectors at `lane`; answers `N`.
///
/// # Safety
/// As [`score_tiles`], and there are `N` vectors of lanes at `lane`.
#[inline(always)]
unsafe fn every_score<const R: usize, const N: usize>(scores: Scores, lane: usize, out: &mut [f32]) -> usize {
    let lanes = scores.operands.lanes;
    let mut row = 0;
    while row < scores.selected.len() {
        // SAFETY: features and sizes are those of `score_tiles`. `rows` and `dot` get R selected where so many are left, else one, and
        // the `N` vectors at `lane`, which are there.
        unsafe {
            if row + R <= scores.selected.len() {
                let sums = dot::<R, N>(scores.operands, scores.rows(row), lane);
                for r in 0..R {
                    let values = score_row::<N>(&scores, row + r, lane, &sums[r]);
                    store(values, out, (row + r) * lanes + lane);
                }
                row += R;
            } else {
                let [sums] = dot::<1, N>(scores.operands, scores.rows(row), lane);
                store(score_row::<N>(&scores, row, lane, &sums), out, row * lanes + lane);
                row += 1;
            }
        }
    }
    N
}

/// The scores of the keys that are above a limit in any of the `N` vectors, which are all lanes.
///
/// # Safety
/// As [`score_tiles`], and `N` vectors are all lanes.
#[inline(always)]
unsafe fn survivors<const R: usize, const N: usize>(
    scores: Scores,
    limits: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    kept.resize(scores.selected.len(), 0);
    let (mut count, mut row) = (0, 0);
    while row < scores.selected.len() {
        // SAFETY: features and sizes are those of `score_tiles`. `rows` and `dot` get R selected where so many are left, else one, and
        // all lanes, which are `N` vectors.
        unsafe {
            if row + R <= scores.selected.len() {
                let sums = dot::<R, N>(scores.operands, scores.rows(row), 0);
                for r in 0..R {
                    kept[count] = row + r;
                    count += keep::<N>(&scores, limits, row + r, &sums[r], out, count);
                }
                row += R;
            } else {
                let [sums] = dot::<1, N>(scores.operands, scores.rows(row), 0);
                kept[count] = row;
                count += keep::<N>(&scores, limits, row, &sums, out, count);
                row += 1;
            }
        }
    }
    kept.truncate(count);
}

/// Writes the scores of a key as row `count`, and answers 1 if it is to stay because they are above a limit, else 0: a
/// branch would be guessed wrongly too often.
///
/// # Safety
/// The CPU has AVX-512F; `row` is the place of a selected key, and `N` vectors are all lanes.
#[inline(always)]
unsafe fn keep<const N: usize>(
    scores: &Scores,
    limits: &[f32],
    row: usize,
    sums: &[__m512i; N],
    out: &mut [f32],
    count: usize,
) -> usize {
    // SAFETY: all lanes are `N` vectors, and `scores` has checked that there are as many limits; so much for what is read. The CPU
    // has the features and `row` is the place of a selected key, which is what `score_row` and `store` need.
    unsafe {
        let values = score_row::<N>(scores, row, 0, sums);
        let mut above = 0;
        for n in 0..N {
            let limit = _mm512_loadu_ps(limits.as_ptr().add(n * WIDTH));
            above |= _mm512_cmp_ps_mask(values[n], limit, _CMP_NLE_UQ);
        }
        store(values, out, count * N * WIDTH);
        usize::from(above != 0)
    }
}

/// The sums of a key as scores.
///
/// # Safety
/// The CPU has AVX-512F; `row` is the place of a selected key, and there are `N` vectors of lanes at `lane`.
#[inline(always)]
unsafe fn score_row<const N: usize>(
    scores: &Scores,
    row: usize,
    lane: usize,
    sums: &[__m512i; N],
) -> [__m512; N] {
    // SAFETY: there is a scale for every lane, `lane + N * 16` are not too many, and one for every key, which is what indices count.
    unsafe {
        let mut values = [_mm512_setzero_ps(); N];
        for n in 0..N {
            let queries = _mm512_loadu_ps(scores.query_scales.as_ptr().add(lane + n * WIDTH));
            let key = scores.keys.scales.get_unchecked(*scores.selected.get_unchecked(row));
            let scale = _mm512_mul_ps(queries, _mm512_set1_ps(*key));
            values[n] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[n]), scale);
        }
        values
    }
}

/// Stores `N` vectors from `out[start]` on.
///
/// # Safety
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn store<const N: usize>(values: [__m512; N], out: &mut [f32], start: usize) {
    let out = &mut out[start..][..N * WIDTH];
    for n in 0..N {
        // SAFETY: the slice has `N` vectors.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(n * WIDTH), values[n]) };
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`accumulate`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate_tiles(operands: Operands, values: &[u32], scales: &[f32], out: &mut [f32]) {
    let mut lane = 0;
    while lane < operands.lanes {
        // SAFETY: the features are those of this function, and the sizes are checked; no more vectors than are left at `lane`.
        unsafe {
            lane += WIDTH
                * match (operands.lanes - lane) / WIDTH {
                    1 => add_panel::<8, 1>(operands, values, scales, lane, out),
                    2 => add_panel::<8, 2>(operands, values, scales, lane, out),
                    3 => add_panel::<8, 3>(operands, values, scales, lane, out),
                    6 => add_panel::<4, 6>(operands, values, scales, lane, out),
                    _ => add_panel::<4, 4>(operands, values, scales, lane, out),
                };
        }
    }
}

/// Adds the product to all channels of the `N` vectors at `lane`; answers `N`.
///
/// # Safety
/// As [`accumulate_tiles`], and there are `N` vectors of lanes at `lane`.
#[inline(always)]
unsafe fn add_panel<const R: usize, const N: usize>(
    operands: Operands,
    values: &[u32],
    scales: &[f32],
    lane: usize,
    out: &mut [f32],
) -> usize {
    let (lanes, rows) = (operands.lanes, out.len() / operands.lanes);
    let mut row = 0;
    while row < rows {
        // SAFETY: features and sizes are those of `accumulate_tiles`. `row` and the R - 1 after it, where so many are left, are
        // channels: each has a scale, and `depth` pairs, `pair_stride` apart, of which the first row of `values` has the first.
        unsafe {
            if row + R <= rows {
                let mut channels = [values.as_ptr(); R];
                for r in 0..R {
                    channels[r] = values.as_ptr().add(row + r);
                }
                let sums = dot::<R, N>(operands, channels, lane);
                for r in 0..R {
                    add::<N>(scales, row + r, &sums[r], &mut out[(row + r) * lanes + lane..]);
                }
                row += R;
            } else {
                let [sums] = dot::<1, N>(operands, [values.as_ptr().add(row)], lane);
                add::<N>(scales, row, &sums, &mut out[row * lanes + lane..]);
                row += 1;
            }
        }
    }
    N
}

/// Adds the sums of a channel to the first `N` vectors of `out`.
///
/// # Safety
/// The CPU has AVX-512F; `channel` has a scale.
#[inline(always)]
unsafe fn add<const N: usize>(scales: &[f32], channel: usize, sums: &[__m512i; N], out: &mut [f32]) {
    let out = &mut out[..N * WIDTH];
    for n in 0..N {
        // SAFETY: the slice has `N` vectors, and the scale is there.
        unsafe {
            let out = out.as_mut_ptr().add(n * WIDTH);
            let old = _mm512_loadu_ps(out);
            let scale = _mm512_set1_ps(*scales.get_unchecked(channel) / LARGEST_WEIGHT);
            _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[n]), scale, old));
        }
    }
}

/// `R` rows by `N` vectors of sums, kept in registers: every loop over them has a constant count, or they would be kept
/// in memory.
///
/// # Safety
/// The CPU has the instructions; the rows of `a` have `depth` pairs, `pair_stride` apart, and `b` has vectors
/// `lane / 16..lane / 16 + N`.
#[inline(always)]
unsafe fn dot<const R: usize, const N: usize>(
    Operands { pair_stride, b, lanes, depth }: Operands,
    mut a: [*const u32; R],
    lane: usize,
) -> [[__m512i; N]; R] {
    // SAFETY: every row is read at its `depth` pairs and `b` at `depth` rows of `N` vectors at `lane`, and these are there. Pointers
    // that have gone past them are not read. Pairs of 16-bit numbers may stand at any even address.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); N]; R];
        let mut b = b.as_ptr().add(lane);
        for _ in 0..depth {
            let mut columns = [_mm512_setzero_si512(); N];
            for n in 0..N {
                columns[n] = _mm512_loadu_si512(b.add(n * WIDTH).cast());
            }
            for r in 0..R {
                let pair = _mm512_set1_epi32(a[r].read_unaligned() as i32);
                a[r] = a[r].wrapping_add(pair_stride);
                for n in 0..N {
                    sums[r][n] = _mm512_dpwssd_epi32(sums[r][n], pair, columns[n]);
                }
            }
            b = b.wrapping_add(lanes);
        }
        sums
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`pack`] checks.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_rows(rows: &[f32], lanes: usize, factors: &[f32], out: &mut [u32]) {
    for (pair, out) in rows.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
        for lane in (0..lanes).step_by(WIDTH) {
            // SAFETY: `lane + 16 <= lanes`, and the second row is read only where there is one.
            unsafe {
                let factor = _mm512_loadu_ps(factors.as_ptr().add(lane));
                let first = _mm512_loadu_ps(pair.as_ptr().add(lane));
                let first = _mm512_cvtps_epi32(_mm512_mul_ps(first, factor));
                let mut second = _mm512_setzero_si512();
                if pair.len() > lanes {
                    let row = _mm512_loadu_ps(pair.as_ptr().add(lanes + lane));
                    second = _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(row, factor)), 16);
                }
                let packed = _mm512_mask_blend_epi16(0xaaaa_aaaa, first, second);
                _mm512_storeu_si512(out.as_mut_ptr().add(lane).cast(), packed);
            }
        }
    }
}
