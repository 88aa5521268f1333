//! The sparse product of pairs with the dot-product instructions of AVX-512.

use std::arch::x86_64::*;

use super::{DeltaTile, Keys, PairKind};
use crate::simd::KeyStreams;

/// f32 or sums in a vector.
const WIDTH: usize = 16;

/// 16-bit numbers in a vector. In the tile a vector has the lanes 0..4, 16..20, 4..8, 20..24, and so on, of 32: interleaving the
/// lower halves of every four numbers of two such vectors gives the pairs of lanes 0..16, the upper halves those of 16..32.
const CHUNK: usize = 2 * WIDTH;

/// Limits of integer sums; the sums are smaller.
const LARGEST_LIMIT: f32 = (1 << 30) as f32;

/// The share of entries up to which a key's differences are multiplied sooner than a first pass in 8 bits has sorted it out: on
/// AMD's Zen 4 4.5 cycles for each (and 96 lanes) and 8 for the key, where 64 channels take about 100 the other way
/// (docs/results/attention.md).
pub(super) const MOST_SENT: f64 = 0.32;

/// Whether the sparse product pays at all.
pub(super) fn pays() -> bool {
    // Loads keep up with products on CPUs that do 512 bits in halves: AMD's, which alone have SSE4a.
    is_x86_feature_detected!("sse4a") && is_x86_feature_detected!("avx512vbmi2")
}

/// See [`super::Pairs::push_differences`].
pub(super) fn push_differences(deltas: &[u16], out: &mut KeyStreams<u16>) {
    assert!(is_x86_feature_detected!("avx512vbmi2") && is_x86_feature_detected!("avx512vl"));
    // SAFETY: the instructions are there.
    unsafe { compress(deltas, out) }
}

/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
unsafe fn compress(rows: &[u16], out: &mut KeyStreams<u16>) {
    let KeyStreams { head_dim, ends, channels, deltas } = out;
    let halves = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let iota = _mm256_setr_m128i(halves, _mm_add_epi8(halves, _mm_set1_epi8(16)));
    for row in rows.chunks_exact(*head_dim) {
        let mut len = deltas.len();
        // Vectors are stored whole, and one number may be added.
        channels.reserve(row.len() + CHUNK + 1);
        deltas.reserve(row.len() + CHUNK + 1);
        for first in (0..row.len()).step_by(CHUNK) {
            let lanes = ((1_u64 << (row.len() - first).min(CHUNK)) - 1) as u32;
            // SAFETY: numbers are read as far as the row goes; the lists have room for a vector behind the `len` numbers that came
            // from the channels before `first`.
            unsafe {
                let delta = _mm512_maskz_loadu_epi16(lanes, row.as_ptr().add(first).cast());
                let sent = _mm512_test_epi16_mask(delta, delta);
                let numbers = _mm256_add_epi8(iota, _mm256_set1_epi8(first as i8));
                let numbers = _mm256_maskz_compress_epi8(sent, numbers);
                _mm256_storeu_si256(channels.as_mut_ptr().add(len).cast(), numbers);
                let packed = _mm512_maskz_compress_epi16(sent, delta);
                _mm512_storeu_si512(deltas.as_mut_ptr().add(len).cast(), packed);
                len += sent.count_ones() as usize;
            }
        }
        // SAFETY: there is room for one more number, and then so many have been written.
        unsafe {
            if !len.is_multiple_of(2) {
                channels.as_mut_ptr().add(len).write(0);
                deltas.as_mut_ptr().add(len).write(0);
                len += 1;
            }
            channels.set_len(len);
            deltas.set_len(len);
        }
        ends.push(len as u32);
    }
}

/// See [`super::Pairs::set_tile`].
pub(super) fn set_tile(kind: PairKind, queries: &[f32], lanes: usize, factors: &[f32], out: &mut Vec<u16>) {
    let channels = queries.len() / lanes;
    assert!(lanes.is_multiple_of(WIDTH) && queries.len() == channels * lanes && factors.len() == lanes);
    out.resize(channels * lanes.next_multiple_of(CHUNK), 0);
    // SAFETY: the kind was detected (a `Pairs` with `avx512` is made by `detect` alone), and the lengths checked.
    unsafe {
        match kind {
            PairKind::Int16 => code_tile(queries, lanes, factors, out),
            PairKind::Bf16 => round_tile(queries, lanes, out),
        }
    }
}

/// # Safety
/// The CPU has the features, and the operands the sizes that [`set_tile`] checks.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn code_tile(queries: &[f32], lanes: usize, factors: &[f32], out: &mut [u16]) {
    for (row, out) in queries.chunks_exact(lanes).zip(out.chunks_exact_mut(lanes.next_multiple_of(CHUNK))) {
        for (out, lane) in out.chunks_exact_mut(CHUNK).zip((0..lanes).step_by(CHUNK)) {
            // SAFETY: 16 lanes there are at `lane`, and behind them if `lane + 16` is a lane; `out` has 32 numbers.
            unsafe {
                let code = |lane: usize| match lane < lanes {
                    true => {
                        let factor = _mm512_loadu_ps(factors.as_ptr().add(lane));
                        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row.as_ptr().add(lane)), factor))
                    }
                    false => _mm512_setzero_si512(),
                };
                let packed = _mm512_packs_epi32(code(lane), code(lane + WIDTH));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), packed);
            }
        }
    }
}

/// # Safety
/// As [`code_tile`], with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn round_tile(queries: &[f32], lanes: usize, out: &mut [u16]) {
    for (row, out) in queries.chunks_exact(lanes).zip(out.chunks_exact_mut(lanes.next_multiple_of(CHUNK))) {
        for (out, lane) in out.chunks_exact_mut(CHUNK).zip((0..lanes).step_by(CHUNK)) {
            // SAFETY: as in `code_tile`.
            unsafe {
                let bits = |lane: usize| match lane < lanes {
                    true => super::super::avx512::bf16_bits(_mm512_loadu_ps(row.as_ptr().add(lane))),
                    false => _mm512_setzero_si512(),
                };
                let packed = _mm512_packus_epi32(bits(lane), bits(lane + WIDTH));
                _mm512_storeu_si512(out.as_mut_ptr().cast(), packed);
            }
        }
    }
}

/// See [`super::Pairs::delta_scores`].
pub(super) fn scores(
    kind: PairKind,
    keys: Keys,
    tile: &DeltaTile,
    thresholds: Option<&[f32]>,
    out: &mut [f32],
    kept: &mut Vec<usize>,
) {
    let lanes = tile.scales.len();
    let stride = lanes.next_multiple_of(CHUNK);
    assert!(lanes.is_multiple_of(WIDTH) && tile.rows.len() == keys.stream.head_dim * stride);
    assert!(thresholds.is_none_or(|limits| limits.len() == lanes));
    let rows = out.len() / lanes;
    assert!(keys.skip + rows <= keys.stream.len());
    // What a sum is multiplied by to be a score, and what sums have to exceed.
    let mut scales = tile.scales.clone();
    scales.iter_mut().for_each(|scale| *scale *= keys.scale);
    let mut limits = vec![0.0; lanes];
    if let Some(thresholds) = thresholds {
        for ((limit, threshold), scale) in limits.iter_mut().zip(thresholds).zip(&scales) {
            *limit = threshold / scale;
        }
    }
    // Limits of all lanes are tested together, if their sums fit in registers.
    let fused = thresholds.is_some() && lanes <= 4 * CHUNK;
    let panel = Panel { keys, tile: &tile.rows, stride, lanes, rows, scales: &scales, limits: &limits };
    kept.resize(rows, 0);
    let mut lane = 0;
    while lane < lanes {
        // SAFETY: the kind was detected; every key has an even number of channels and as many differences, as `Pairs::streams` makes
        // them; channels are below `head_dim` and the tile has as many rows; `out` has `rows` rows of all
        // lanes, and scales and limits are there for each of them. `P` chunks begin at `lane`.
        let count = unsafe {
            match (kind, (lanes - lane).div_ceil(CHUNK)) {
                (PairKind::Int16, 1) => int16::<1>(panel, lane, fused, out, kept),
                (PairKind::Int16, 2) => int16::<2>(panel, lane, fused, out, kept),
                (PairKind::Int16, 3) => int16::<3>(panel, lane, fused, out, kept),
                (PairKind::Int16, _) => int16::<4>(panel, lane, fused, out, kept),
                (PairKind::Bf16, 1) => bf16::<1>(panel, lane, fused, out, kept),
                (PairKind::Bf16, 2) => bf16::<2>(panel, lane, fused, out, kept),
                (PairKind::Bf16, 3) => bf16::<3>(panel, lane, fused, out, kept),
                (PairKind::Bf16, _) => bf16::<4>(panel, lane, fused, out, kept),
            }
        };
        kept.truncate(count);
        lane += 4 * CHUNK;
    }
    if let Some(limits) = thresholds.filter(|_| !fused) {
        super::super::keep_above(limits, out, kept);
    }
}

/// The product of some keys and a tile, and what is wanted of it.
#[derive(Clone, Copy)]
struct Panel<'a> {
    keys: Keys<'a>,
    tile: &'a [u16],
    /// From one row of the tile to the next.
    stride: usize,
    lanes: usize,
    rows: usize,
    /// What a sum is multiplied by to be a score, `[lanes]`.
    scales: &'a [f32],
    /// What sums have to exceed, `[lanes]`.
    limits: &'a [f32],
}

/// # Safety
/// As [`score_keys`], with AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
unsafe fn int16<const P: usize>(
    panel: Panel,
    lane: usize,
    test: bool,
    out: &mut [f32],
    kept: &mut [usize],
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { score_keys::<false, P>(panel, lane, test, out, kept) }
}

/// # Safety
/// As [`score_keys`], with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn bf16<const P: usize>(
    panel: Panel,
    lane: usize,
    test: bool,
    out: &mut [f32],
    kept: &mut [usize],
) -> usize {
    // SAFETY: as the caller promises.
    unsafe { score_keys::<true, P>(panel, lane, test, out, kept) }
}

/// The scores of the keys, for the `P` chunks at `lane`: all of them, or with `test` those above the limits. Answers how many, and
/// writes which.
///
/// # Safety
/// The CPU has the kind's instructions; keys have an even number of channels, all below the number of rows of the tile; `P` chunks begin at
/// `lane`, the last of them with 16 lanes or 32; there are scales and limits for all lanes, and rows of all lanes in `out`, and
/// numbers in `kept`, for `panel.rows` keys.
#[inline(always)]
unsafe fn score_keys<const BF16: bool, const P: usize>(
    panel: Panel,
    lane: usize,
    test: bool,
    out: &mut [f32],
    kept: &mut [usize],
) -> usize {
    let Panel { keys, tile, stride, lanes, rows, scales, limits } = panel;
    let vectors = ((lanes - lane) / WIDTH).min(2 * P);
    // SAFETY: as the caller promises. Pairs of 16-bit numbers may be read at any even address.
    unsafe {
        // Sums relative to the limits: those of integers begin one below, so that one that exceeds its limit is not negative.
        let mut starts = [[_mm512_setzero_si512(); 2]; P];
        for n in 0..2 * P {
            // Lanes that are not there keep no key.
            let limit = match n < vectors {
                true => _mm512_loadu_ps(limits.as_ptr().add(lane + n * WIDTH)),
                false => _mm512_set1_ps(LARGEST_LIMIT),
            };
            if test {
                starts[n / 2][n % 2] = start::<BF16>(limit);
            }
        }
        let (mut sums, mut count) = (starts, 0);
        let tile = tile.as_ptr().add(lane);
        for (key, (channels, deltas)) in keys.stream.keys(keys.skip + rows).enumerate() {
            for i in (0..channels.len()).step_by(2) {
                let pair = deltas.as_ptr().add(i).cast::<i32>().read_unaligned();
                let pair = _mm512_set1_epi32(pair);
                let a = tile.add(usize::from(*channels.get_unchecked(i)) * stride);
                let b = tile.add(usize::from(*channels.get_unchecked(i + 1)) * stride);
                for p in 0..P {
                    let a = _mm512_loadu_si512(a.add(p * CHUNK).cast());
                    let b = _mm512_loadu_si512(b.add(p * CHUNK).cast());
                    sums[p][0] = dot::<BF16>(sums[p][0], pair, _mm512_unpacklo_epi16(a, b));
                    sums[p][1] = dot::<BF16>(sums[p][1], pair, _mm512_unpackhi_epi16(a, b));
                }
            }
            if key < keys.skip {
                continue;
            }
            // Written always and counted only if kept: a branch would be guessed wrongly too often.
            *kept.get_unchecked_mut(count) = key - keys.skip;
            let row = out.as_mut_ptr().add(count * lanes + lane);
            for n in 0..2 * P {
                if n < vectors {
                    _mm512_storeu_si512(row.add(n * WIDTH).cast(), sums[n / 2][n % 2]);
                }
            }
            count += usize::from(!test || any_above::<BF16, P>(&sums));
        }
        // Sums become scores.
        for row in 0..count {
            let row = out.as_mut_ptr().add(row * lanes + lane);
            for n in 0..vectors {
                let at = row.add(n * WIDTH);
                let sum = _mm512_loadu_si512(at.cast());
                let scale = _mm512_loadu_ps(scales.as_ptr().add(lane + n * WIDTH));
                _mm512_storeu_ps(at, score::<BF16>(sum, starts[n / 2][n % 2], scale));
            }
        }
        count
    }
}

/// What a sum starts from, so that it is above zero (bf16) or not below (integers) where it exceeds the limit. A limit that is no
/// number is exceeded by everything.
///
/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn start<const BF16: bool>(limit: __m512) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        if BF16 {
            return _mm512_castps_si512(_mm512_sub_ps(_mm512_setzero_ps(), limit));
        }
        // Of a number and none these give the second.
        let limit = _mm512_max_ps(limit, _mm512_set1_ps(-LARGEST_LIMIT));
        let limit = _mm512_min_ps(limit, _mm512_set1_ps(LARGEST_LIMIT));
        let limit = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(limit);
        // -limit - 1
        _mm512_xor_si512(limit, _mm512_set1_epi32(-1))
    }
}

/// Whether any of the sums, relative to their limits, is above them. A sum that is no number is not lost silently.
///
/// # Safety
/// AVX-512F and DQ.
#[inline(always)]
unsafe fn any_above<const BF16: bool, const P: usize>(sums: &[[__m512i; 2]; P]) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        if BF16 {
            let mut above = 0;
            for p in 0..P {
                for sum in sums[p] {
                    above |= _mm512_cmp_ps_mask(_mm512_castsi512_ps(sum), _mm512_setzero_ps(), _CMP_NLE_UQ);
                }
            }
            above != 0
        } else {
            let mut below = _mm512_set1_epi32(-1);
            for p in 0..P {
                below = _mm512_ternarylogic_epi32::<0x80>(below, sums[p][0], sums[p][1]);
            }
            _mm512_movepi32_mask(below) != 0xffff
        }
    }
}

/// # Safety
/// AVX-512F.
#[inline(always)]
unsafe fn score<const BF16: bool>(sum: __m512i, start: __m512i, scale: __m512) -> __m512 {
    // SAFETY: as the caller promises.
    unsafe {
        if BF16 {
            _mm512_sub_ps(_mm512_castsi512_ps(sum), _mm512_castsi512_ps(start))
        } else {
            _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sum, start)), scale)
        }
    }
}

/// # Safety
/// The CPU has the kind's instructions.
#[inline(always)]
unsafe fn dot<const BF16: bool>(sum: __m512i, pair: __m512i, queries: __m512i) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        if BF16 {
            let (pair, queries) =
                (super::super::avx512::as_bf16(pair), super::super::avx512::as_bf16(queries));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), pair, queries))
        } else {
            _mm512_dpwssd_epi32(sum, pair, queries)
        }
    }
}
