//! The products of pairs with the dot-product instructions of AVX-512.
//!
//! The tiles are those of `matmul`: 24 sums in registers, for 4 rows and all 96 lanes, or 6 rows and 64 lanes.

use std::arch::x86_64::*;

use super::{LARGEST_WEIGHT, Operands, PairKeys, PairKind, PairQueries, keep_above};

/// f32 or pairs in a vector.
const WIDTH: usize = 16;

/// Whether the CPU has the instructions for this kind.
pub(super) fn detect(kind: PairKind) -> bool {
    let dot = match kind {
        PairKind::Int16 => is_x86_feature_detected!("avx512vnni"),
        PairKind::Bf16 => is_x86_feature_detected!("avx512bf16"),
    };
    dot && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
}

/// See [`super::Pairs::scores`]. Panics for sizes that do not fit: the kernels below rely on them.
pub(super) fn scores(
    kind: PairKind,
    keys: &PairKeys,
    picks: &[usize],
    queries: &PairQueries,
    thresholds: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let lanes = queries.scales.len();
    let depth = queries.pairs.len() / lanes;
    let tokens = keys.rows.len() / (2 * depth);
    assert!(lanes.is_multiple_of(WIDTH) && queries.pairs.len() == depth * lanes);
    assert!(picks.iter().all(|pick| *pick < tokens) && out.len() >= picks.len() * lanes);
    assert!(kind == PairKind::Bf16 || keys.scales.len() == tokens);
    assert!(thresholds.is_none_or(|thresholds| thresholds.len() == lanes));
    let operands = Operands { pair_stride: 1, b: &queries.pairs, lanes, depth };
    let scores = Scores { keys, picks, operands, query_scales: &queries.scales, thresholds };
    // SAFETY: the kind was detected (a `Pairs` with `avx512` is made by `detect` alone). The picks are keys of `depth`
    // pairs; scales, `b` and `out` have the lengths checked above.
    unsafe {
        match kind {
            PairKind::Int16 => scores_int16(scores, out, kept),
            PairKind::Bf16 => scores_bf16(scores, out, kept),
        }
    }
}

/// See [`super::Pairs::accumulate`]. Panics for sizes that do not fit.
pub(super) fn accumulate(
    kind: PairKind,
    values: &[u32],
    scales: &[f32],
    weights: &[u32],
    lanes: usize,
    out: &mut [f32],
) {
    let (head_dim, depth) = (out.len() / lanes, weights.len() / lanes);
    assert!(lanes.is_multiple_of(WIDTH) && out.len() == head_dim * lanes && weights.len() == depth * lanes);
    assert!(values.len() == head_dim * depth && (kind == PairKind::Bf16 || scales.len() == head_dim));
    let operands = Operands { pair_stride: head_dim, b: weights, lanes, depth };
    // SAFETY: the kind was detected; values, `b` and `out` have the lengths checked above.
    unsafe {
        match kind {
            PairKind::Int16 => accumulate_int16(operands, values, scales, out),
            PairKind::Bf16 => accumulate_bf16(operands, values, scales, out),
        }
    }
}

/// See [`super::Pairs::pack`]. Panics for sizes that do not fit.
pub(super) fn pack(kind: PairKind, rows: &[f32], lanes: usize, factors: &[f32], out: &mut [u32]) {
    let count = rows.len() / lanes;
    assert!(lanes.is_multiple_of(WIDTH) && rows.len() == count * lanes);
    assert!(factors.len() == lanes && out.len() == count.div_ceil(2) * lanes);
    // SAFETY: the kind was detected, and the lengths checked above.
    unsafe {
        match kind {
            PairKind::Int16 => pack_int16(rows, lanes, factors, out),
            PairKind::Bf16 => pack_bf16(rows, lanes, out),
        }
    }
}

/// The product of keys and queries, and what is wanted of it.
#[derive(Clone, Copy)]
struct Scores<'a> {
    keys: &'a PairKeys,
    picks: &'a [usize],
    operands: Operands<'a>,
    query_scales: &'a [f32],
    thresholds: Option<&'a [f32]>,
}

impl Scores<'_> {
    /// Where the picked keys from `row` on stand.
    ///
    /// # Safety
    /// There are `R` of them.
    #[inline(always)]
    unsafe fn rows<const R: usize>(&self, row: usize) -> [*const u32; R] {
        let (keys, depth) = (self.keys.rows.as_ptr().cast::<u32>(), self.operands.depth);
        let mut rows = [keys; R];
        for r in 0..R {
            // SAFETY: as the caller promises; a pick is a key of `depth` pairs.
            rows[r] = unsafe { keys.add(self.picks.get_unchecked(row + r) * depth) };
        }
        rows
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`scores`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn scores_int16(scores: Scores, out: &mut [f32], kept: &mut Vec<usize>) {
    // SAFETY: as the caller promises.
    unsafe { score_tiles::<false>(scores, out, kept) }
}

/// # Safety
/// As [`scores_int16`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn scores_bf16(scores: Scores, out: &mut [f32], kept: &mut Vec<usize>) {
    // SAFETY: as the caller promises.
    unsafe { score_tiles::<true>(scores, out, kept) }
}

/// # Safety
/// As [`scores_int16`], for the kind.
#[inline(always)]
unsafe fn score_tiles<const BF16: bool>(scores: Scores, out: &mut [f32], kept: &mut Vec<usize>) {
    // SAFETY: as the caller promises.
    unsafe {
        match (scores.operands.lanes / WIDTH, scores.thresholds) {
            (6, Some(limits)) => survivors::<BF16, 4, 6>(scores, limits, out, kept),
            (4, Some(limits)) => survivors::<BF16, 6, 4>(scores, limits, out, kept),
            (3, Some(limits)) => survivors::<BF16, 8, 3>(scores, limits, out, kept),
            (2, Some(limits)) => survivors::<BF16, 8, 2>(scores, limits, out, kept),
            (1, Some(limits)) => survivors::<BF16, 8, 1>(scores, limits, out, kept),
            (_, limits) => {
                let mut lane = 0;
                while lane < scores.operands.lanes {
                    lane += WIDTH
                        * match (scores.operands.lanes - lane) / WIDTH {
                            1 => every_score::<BF16, 8, 1>(scores, lane, out),
                            2 => every_score::<BF16, 8, 2>(scores, lane, out),
                            3 => every_score::<BF16, 8, 3>(scores, lane, out),
                            6 => every_score::<BF16, 4, 6>(scores, lane, out),
                            _ => every_score::<BF16, 6, 4>(scores, lane, out),
                        };
                }
                kept.extend(0..scores.picks.len());
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
/// As [`scores_int16`], for the kind, and `lane / 16 + N` vectors there are.
#[inline(always)]
unsafe fn every_score<const BF16: bool, const R: usize, const N: usize>(
    scores: Scores,
    lane: usize,
    out: &mut [f32],
) -> usize {
    let lanes = scores.operands.lanes;
    let mut row = 0;
    while row < scores.picks.len() {
        // SAFETY: as the caller promises; fewer than R rows are left only if R is 1.
        unsafe {
            if row + R <= scores.picks.len() {
                let sums = dot::<BF16, R, N>(scores.operands, scores.rows(row), lane);
                for r in 0..R {
                    let values = score_row::<BF16, N>(&scores, row + r, lane, &sums[r]);
                    store(values, out, (row + r) * lanes + lane);
                }
                row += R;
            } else {
                let [sums] = dot::<BF16, 1, N>(scores.operands, scores.rows(row), lane);
                store(score_row::<BF16, N>(&scores, row, lane, &sums), out, row * lanes + lane);
                row += 1;
            }
        }
    }
    N
}

/// The scores of the keys that are above a limit in any of the `N` vectors, which are all lanes.
///
/// # Safety
/// As [`scores_int16`], for the kind, and `N` vectors are all lanes.
#[inline(always)]
unsafe fn survivors<const BF16: bool, const R: usize, const N: usize>(
    scores: Scores,
    limits: &[f32],
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    kept.resize(scores.picks.len(), 0);
    let (mut count, mut row) = (0, 0);
    while row < scores.picks.len() {
        // SAFETY: as the caller promises; fewer than R rows are done one by one.
        unsafe {
            if row + R <= scores.picks.len() {
                let sums = dot::<BF16, R, N>(scores.operands, scores.rows(row), 0);
                for r in 0..R {
                    kept[count] = row + r;
                    count += keep::<BF16, N>(&scores, limits, row + r, &sums[r], out, count);
                }
                row += R;
            } else {
                let [sums] = dot::<BF16, 1, N>(scores.operands, scores.rows(row), 0);
                kept[count] = row;
                count += keep::<BF16, N>(&scores, limits, row, &sums, out, count);
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
/// AVX-512F; `row` is a key, and `N` vectors are all lanes.
#[inline(always)]
unsafe fn keep<const BF16: bool, const N: usize>(
    scores: &Scores,
    limits: &[f32],
    row: usize,
    sums: &[__m512i; N],
    out: &mut [f32],
    count: usize,
) -> usize {
    // SAFETY: as the caller promises; there are as many limits as lanes.
    unsafe {
        let values = score_row::<BF16, N>(scores, row, 0, sums);
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
/// AVX-512F; `row` is a key and `lane / 16 + N` vectors there are.
#[inline(always)]
unsafe fn score_row<const BF16: bool, const N: usize>(
    scores: &Scores,
    row: usize,
    lane: usize,
    sums: &[__m512i; N],
) -> [__m512; N] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut values = [_mm512_setzero_ps(); N];
        for n in 0..N {
            values[n] = if BF16 {
                _mm512_castsi512_ps(sums[n])
            } else {
                let queries = _mm512_loadu_ps(scores.query_scales.as_ptr().add(lane + n * WIDTH));
                let key = scores.keys.scales.get_unchecked(*scores.picks.get_unchecked(row));
                let scale = _mm512_mul_ps(queries, _mm512_set1_ps(*key));
                _mm512_mul_ps(_mm512_cvtepi32_ps(sums[n]), scale)
            };
        }
        values
    }
}

/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn store<const N: usize>(values: [__m512; N], out: &mut [f32], start: usize) {
    let out = &mut out[start..][..N * WIDTH];
    for n in 0..N {
        // SAFETY: the slice has N vectors.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(n * WIDTH), values[n]) };
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`accumulate`] checks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn accumulate_int16(operands: Operands, values: &[u32], scales: &[f32], out: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { accumulate_tiles::<false>(operands, values, scales, out) }
}

/// # Safety
/// As [`accumulate_int16`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn accumulate_bf16(operands: Operands, values: &[u32], scales: &[f32], out: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { accumulate_tiles::<true>(operands, values, scales, out) }
}

/// # Safety
/// As [`accumulate_int16`], for the kind.
#[inline(always)]
unsafe fn accumulate_tiles<const BF16: bool>(
    operands: Operands,
    values: &[u32],
    scales: &[f32],
    out: &mut [f32],
) {
    let mut lane = 0;
    while lane < operands.lanes {
        // SAFETY: as the caller promises.
        unsafe {
            lane += WIDTH
                * match (operands.lanes - lane) / WIDTH {
                    1 => add_panel::<BF16, 8, 1>(operands, values, scales, lane, out),
                    2 => add_panel::<BF16, 8, 2>(operands, values, scales, lane, out),
                    3 => add_panel::<BF16, 8, 3>(operands, values, scales, lane, out),
                    6 => add_panel::<BF16, 4, 6>(operands, values, scales, lane, out),
                    _ => add_panel::<BF16, 4, 4>(operands, values, scales, lane, out),
                };
        }
    }
}

/// Adds the product to all channels of the `N` vectors at `lane`; answers `N`.
///
/// # Safety
/// As [`accumulate_int16`], for the kind, and `lane / 16 + N` vectors there are.
#[inline(always)]
unsafe fn add_panel<const BF16: bool, const R: usize, const N: usize>(
    operands: Operands,
    values: &[u32],
    scales: &[f32],
    lane: usize,
    out: &mut [f32],
) -> usize {
    let (lanes, rows) = (operands.lanes, out.len() / operands.lanes);
    let mut row = 0;
    while row < rows {
        // SAFETY: as the caller promises; fewer than R rows are done one by one.
        unsafe {
            if row + R <= rows {
                let mut channels = [values.as_ptr(); R];
                for r in 0..R {
                    channels[r] = values.as_ptr().add(row + r);
                }
                let sums = dot::<BF16, R, N>(operands, channels, lane);
                for r in 0..R {
                    add::<BF16, N>(scales, row + r, &sums[r], &mut out[(row + r) * lanes + lane..]);
                }
                row += R;
            } else {
                let [sums] = dot::<BF16, 1, N>(operands, [values.as_ptr().add(row)], lane);
                add::<BF16, N>(scales, row, &sums, &mut out[row * lanes + lane..]);
                row += 1;
            }
        }
    }
    N
}

/// Adds the sums of a channel to the first `N` vectors of `out`.
///
/// # Safety
/// AVX-512F; `channel` has a scale, if the sums are integers.
#[inline(always)]
unsafe fn add<const BF16: bool, const N: usize>(
    scales: &[f32],
    channel: usize,
    sums: &[__m512i; N],
    out: &mut [f32],
) {
    let out = &mut out[..N * WIDTH];
    for n in 0..N {
        // SAFETY: as the caller promises; the slice has N vectors.
        unsafe {
            let out = out.as_mut_ptr().add(n * WIDTH);
            let old = _mm512_loadu_ps(out);
            let new = if BF16 {
                _mm512_add_ps(old, _mm512_castsi512_ps(sums[n]))
            } else {
                let scale = _mm512_set1_ps(*scales.get_unchecked(channel) / LARGEST_WEIGHT);
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[n]), scale, old)
            };
            _mm512_storeu_ps(out, new);
        }
    }
}

/// `R` rows by `N` vectors of sums, kept in registers: every loop over them has a constant count, or they would be kept
/// in memory. Integers or, for bf16, the bits of f32.
///
/// # Safety
/// The CPU has the kind's instructions; the rows of `a` have `depth` pairs, `pair_stride` apart, and `b` has vectors
/// `lane / 16..lane / 16 + N`.
#[inline(always)]
unsafe fn dot<const BF16: bool, const R: usize, const N: usize>(
    Operands { pair_stride, b, lanes, depth }: Operands,
    mut a: [*const u32; R],
    lane: usize,
) -> [[__m512i; N]; R] {
    // SAFETY: as the caller promises. Pairs of 16-bit numbers may be read at any even address.
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
                    sums[r][n] = if BF16 {
                        let sum = _mm512_castsi512_ps(sums[r][n]);
                        let product = _mm512_dpbf16_ps(sum, as_bf16(pair), as_bf16(columns[n]));
                        _mm512_castps_si512(product)
                    } else {
                        _mm512_dpwssd_epi32(sums[r][n], pair, columns[n])
                    };
                }
            }
            b = b.wrapping_add(lanes);
        }
        sums
    }
}

#[inline(always)]
pub(super) fn as_bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without any invalid pattern.
    unsafe { std::mem::transmute(bits) }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`pack`] checks.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn pack_int16(rows: &[f32], lanes: usize, factors: &[f32], out: &mut [u32]) {
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

/// # Safety
/// As [`pack_int16`], with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack_bf16(rows: &[f32], lanes: usize, out: &mut [u32]) {
    for (pair, out) in rows.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
        for lane in (0..lanes).step_by(WIDTH) {
            // SAFETY: as in `pack_int16`.
            unsafe {
                let first = bf16_bits(_mm512_loadu_ps(pair.as_ptr().add(lane)));
                let mut second = _mm512_setzero_si512();
                if pair.len() > lanes {
                    let row = _mm512_loadu_ps(pair.as_ptr().add(lanes + lane));
                    second = _mm512_slli_epi32(bf16_bits(row), 16);
                }
                _mm512_storeu_si512(out.as_mut_ptr().add(lane).cast(), _mm512_or_si512(first, second));
            }
        }
    }
}

/// The bits of 16 numbers rounded to bf16.
///
/// # Safety
/// AVX512-BF16.
#[inline(always)]
pub(super) unsafe fn bf16_bits(x: __m512) -> __m512i {
    // SAFETY: as the caller promises; 16 bf16 numbers are 256 bits without any invalid pattern.
    unsafe { _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))) }
}
