//! The products of pairs of bf16 with the dot product of Arm's bf16 extension, `bfdot`.

use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};

use half::bf16;

use crate::prefill::pairs::operands::{Operands, PairKeys, PairQueries, PairValues, keep_above, key_len};

/// Lanes of a vector.
const WIDTH: usize = 4;

/// Whether the CPU has what this module needs.
pub(crate) fn detect() -> bool {
    is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("bf16")
}

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

/// See [`crate::prefill::pairs::Pairs::scores`]. Panics for sizes that do not fit: the kernels below rely on them.
pub(crate) fn scores(
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
    let keys = keys.rows.as_ptr().cast::<u32>();
    let rows: Vec<_> = selected.iter().map(|index| keys.wrapping_add(index * depth)).collect();
    let operands = Operands { pair_stride: 1, b: &queries.pairs, lanes, depth };
    let out_rows = &mut out[..selected.len() * lanes];
    // SAFETY: `Pairs` is set to these instructions by `detect` alone. The selected are keys of `depth` pairs; `b` and the
    // rows of `out` have the lengths checked above.
    unsafe { product::<false>(operands, &rows, out_rows) };
    kept.extend(0..selected.len());
    if let Some(limits) = thresholds {
        keep_above(limits, out, kept);
    }
}

/// See [`crate::prefill::pairs::Pairs::accumulate`]. Panics for sizes that do not fit.
pub(crate) fn accumulate(values: &[u32], weights: &[u32], lanes: usize, out: &mut [f32]) {
    let (head_dim, depth) = (out.len() / lanes, weights.len() / lanes);
    assert!(lanes.is_multiple_of(WIDTH) && out.len() == head_dim * lanes && weights.len() == depth * lanes);
    assert!(values.len() == head_dim * depth);
    let rows: Vec<_> = (0..head_dim).map(|channel| values.as_ptr().wrapping_add(channel)).collect();
    let operands = Operands { pair_stride: head_dim, b: weights, lanes, depth };
    // SAFETY: as in `scores`; a channel's values are `head_dim` apart.
    unsafe { product::<true>(operands, &rows, out) };
}

/// `out[row] = rows[row] . b`, or `+=` with `ADD`: `out` is `[rows, lanes]`.
///
/// # Safety
/// The CPU has the bf16 extension; every row has `depth` pairs, `pair_stride` apart, `b` is `[depth, lanes]` with lanes in
/// whole vectors, and `out` has as many rows.
#[target_feature(enable = "neon,bf16")]
unsafe fn product<const ADD: bool>(operands: Operands, rows: &[*const u32], out: &mut [f32]) {
    let lanes = operands.lanes;
    let mut lane = 0;
    while lane < lanes {
        // SAFETY: the features are those of this function, rows and `b` are as it needs them; no more vectors than are left at `lane`.
        lane += WIDTH
            * unsafe {
                match (lanes - lane) / WIDTH {
                    1 => panel::<ADD, 1>(operands, rows, lane, out),
                    2 => panel::<ADD, 2>(operands, rows, lane, out),
                    3 => panel::<ADD, 3>(operands, rows, lane, out),
                    _ => panel::<ADD, 4>(operands, rows, lane, out),
                }
            };
    }
}

/// All rows of the `N` vectors at `lane`, four at a time; answers `N`.
///
/// # Safety
/// As [`product`], and there are `N` vectors of lanes at `lane`.
#[inline(always)]
unsafe fn panel<const ADD: bool, const N: usize>(
    operands: Operands,
    rows: &[*const u32],
    lane: usize,
    out: &mut [f32],
) -> usize {
    let (fours, rest) = rows.as_chunks::<4>();
    let mut out = out.chunks_exact_mut(operands.lanes).map(|row| &mut row[lane..][..N * WIDTH]);
    // SAFETY: the rows, `b` and the features are those of `product`; `out` is cut into slices of `N` vectors.
    unsafe {
        for four in fours {
            for sums in dot::<4, N>(operands, *four, lane) {
                if let Some(out) = out.next() {
                    store::<ADD, N>(&sums, out);
                }
            }
        }
        for (row, out) in rest.iter().zip(out) {
            let [sums] = dot::<1, N>(operands, [*row], lane);
            store::<ADD, N>(&sums, out);
        }
    }
    N
}

/// # Safety
/// `out` has `N` vectors.
#[inline(always)]
unsafe fn store<const ADD: bool, const N: usize>(sums: &[float32x4_t; N], out: &mut [f32]) {
    for n in 0..N {
        // SAFETY: `out` has `N` vectors.
        unsafe {
            let out = out.as_mut_ptr().add(n * WIDTH);
            let sum = if ADD { vaddq_f32(vld1q_f32(out), sums[n]) } else { sums[n] };
            vst1q_f32(out, sum);
        }
    }
}

/// `R` rows by `N` vectors of sums, kept in registers: every loop over them has a constant count.
///
/// # Safety
/// As [`product`]; vectors `lane / 4..lane / 4 + N` are inside `b`.
#[inline(always)]
unsafe fn dot<const R: usize, const N: usize>(
    Operands { pair_stride, b, lanes, depth }: Operands,
    mut a: [*const u32; R],
    lane: usize,
) -> [[float32x4_t; N]; R] {
    // SAFETY: every row is read at its `depth` pairs and `b` at `depth` rows of `N` vectors at `lane`, and these are there. Pointers
    // that have gone past them are not read. Pairs of 16-bit numbers may stand at any even address. The CPU has `bfdot`.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); N]; R];
        let mut b = b.as_ptr().add(lane);
        for _ in 0..depth {
            let mut columns = [vdupq_n_u32(0); N];
            for n in 0..N {
                columns[n] = vld1q_u32(b.add(n * WIDTH));
            }
            for r in 0..R {
                let pair = vdupq_n_u32(a[r].read_unaligned());
                a[r] = a[r].wrapping_add(pair_stride);
                for n in 0..N {
                    sums[r][n] = bfdot(sums[r][n], pair, columns[n]);
                }
            }
            b = b.wrapping_add(lanes);
        }
        sums
    }
}

/// `sums[i] + a[i] . b[i]` for pairs of bf16. The intrinsic, `vbfdotq_f32`, is not stable yet.
///
/// # Safety
/// The CPU has the bf16 extension.
#[inline(always)]
unsafe fn bfdot(mut sums: float32x4_t, a: uint32x4_t, b: uint32x4_t) -> float32x4_t {
    // SAFETY: the CPU has the instruction, which reads and writes these registers alone.
    unsafe {
        asm!(
            "bfdot {sums:v}.4s, {a:v}.8h, {b:v}.8h",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
