//! 8-bit products with AVX512-VNNI and AVX-VNNI.

use std::arch::x86_64::*;

use super::Operands;

/// Whether the CPU has what [`candidates_avx512`] needs.
pub(super) fn detect_avx512() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

/// Whether the CPU has what [`candidates_avx2`] needs.
pub(super) fn detect_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni")
}

/// Bit `i`: the sum of key `i` ends at zero or above in some lane. The CPU has the instructions ([`detect_avx512`]).
pub(super) fn candidates_avx512(operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(16));
    // SAFETY: a `Filter` with `Dots::Avx512` is made by `detect_avx512` alone; the sizes were checked here and in `Operands::new`.
    unsafe { panels_avx512(operands) }
}

/// The same with 256-bit vectors. The CPU has the instructions ([`detect_avx2`]).
pub(super) fn candidates_avx2(operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(8));
    // SAFETY: a `Filter` with `Dots::Avx2` is made by `detect_avx2` alone; the sizes were checked here and in `Operands::new`.
    unsafe { panels_avx2(operands) }
}

/// # Safety
/// The CPU has AVX512-VNNI, and the lanes are a multiple of 16.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn panels_avx512(operands: Operands) -> u64 {
    let lanes = operands.starts.len();
    let (mut bits, mut lane) = (0, 0);
    while lane < lanes {
        // SAFETY: as the caller promises; as many vectors are left.
        let (more, vectors) = unsafe {
            match (lanes - lane) / 16 {
                1 => (panel_avx512::<8, 1>(operands, lane), 1),
                2 => (panel_avx512::<8, 2>(operands, lane), 2),
                3 => (panel_avx512::<8, 3>(operands, lane), 3),
                6 => (panel_avx512::<4, 6>(operands, lane), 6),
                _ => (panel_avx512::<6, 4>(operands, lane), 4),
            }
        };
        (bits, lane) = (bits | more, lane + 16 * vectors);
    }
    bits
}

/// The keys that are wanted by the `N` vectors at `lane`, `R` at a time.
///
/// # Safety
/// As [`panels_avx512`], and `lane / 16 + N` vectors there are.
#[inline(always)]
unsafe fn panel_avx512<const R: usize, const N: usize>(operands: Operands, lane: usize) -> u64 {
    let (mut bits, mut row) = (0, 0);
    while row < operands.rows() {
        // SAFETY: as the caller promises; fewer than R rows are left only if R is 1.
        unsafe {
            if row + R <= operands.rows() {
                bits |= wanted_avx512::<R, N>(operands, row, lane) << row;
                row += R;
            } else {
                bits |= wanted_avx512::<1, N>(operands, row, lane) << row;
                row += 1;
            }
        }
    }
    bits
}

/// The products of `R` keys and `N` vectors, kept in registers: every loop over them has a constant count.
///
/// # Safety
/// As [`panels_avx512`]; rows `row..row + R` and vectors `lane / 16..lane / 16 + N` are inside the operands.
#[inline(always)]
unsafe fn wanted_avx512<const R: usize, const N: usize>(operands: Operands, row: usize, lane: usize) -> u64 {
    let Operands { keys, depth, queries, starts } = operands;
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); N]; R];
        for n in 0..N {
            let start = _mm512_loadu_si512(starts.as_ptr().add(lane + n * 16).cast());
            for r in 0..R {
                sums[r][n] = start;
            }
        }
        let (keys, queries) = (keys.as_ptr().add(row * depth), queries.as_ptr().add(lane));
        for d in 0..depth {
            let mut columns = [_mm512_setzero_si512(); N];
            for n in 0..N {
                columns[n] = _mm512_loadu_si512(queries.add(d * starts.len() + n * 16).cast());
            }
            for r in 0..R {
                let key = _mm512_set1_epi32(*keys.add(r * depth + d) as i32);
                for n in 0..N {
                    sums[r][n] = _mm512_dpbusd_epi32(sums[r][n], key, columns[n]);
                }
            }
        }
        let mut bits = 0;
        for r in 0..R {
            // Of an "and", the sign says whether all are below zero.
            let mut all = sums[r][0];
            for n in 1..N {
                all = _mm512_and_si512(all, sums[r][n]);
            }
            let below = _mm512_cmplt_epi32_mask(all, _mm512_setzero_si512());
            bits |= u64::from(below != 0xffff) << r;
        }
        bits
    }
}

/// # Safety
/// The CPU has AVX-VNNI, and the lanes are a multiple of 8.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn panels_avx2(operands: Operands) -> u64 {
    let lanes = operands.starts.len();
    let (mut bits, mut lane) = (0, 0);
    while lane < lanes {
        // Of 16 registers 12 hold sums. Not of 4 keys and 3 vectors: that leaves one for the keys, and compilers then keep
        // a sum in memory.
        // SAFETY: as the caller promises; as many vectors are left.
        let (more, vectors) = unsafe {
            match (lanes - lane) / 8 {
                1 => (panel_avx2::<8, 1>(operands, lane), 1),
                _ => (panel_avx2::<6, 2>(operands, lane), 2),
            }
        };
        (bits, lane) = (bits | more, lane + 8 * vectors);
    }
    bits
}

/// The keys that are wanted by the `N` vectors at `lane`, `R` at a time.
///
/// # Safety
/// As [`panels_avx2`], and `lane / 8 + N` vectors there are.
#[inline(always)]
unsafe fn panel_avx2<const R: usize, const N: usize>(operands: Operands, lane: usize) -> u64 {
    let (mut bits, mut row) = (0, 0);
    while row < operands.rows() {
        // SAFETY: as the caller promises; as many rows are left.
        unsafe {
            if row + R <= operands.rows() {
                bits |= wanted_avx2::<R, N>(operands, row, lane) << row;
                row += R;
            } else if row + 4 <= operands.rows() {
                bits |= wanted_avx2::<4, N>(operands, row, lane) << row;
                row += 4;
            } else {
                bits |= wanted_avx2::<1, N>(operands, row, lane) << row;
                row += 1;
            }
        }
    }
    bits
}

/// See [`wanted_avx512`].
///
/// # Safety
/// As [`panels_avx2`]; rows `row..row + R` and vectors `lane / 8..lane / 8 + N` are inside the operands.
#[inline(always)]
unsafe fn wanted_avx2<const R: usize, const N: usize>(operands: Operands, row: usize, lane: usize) -> u64 {
    let Operands { keys, depth, queries, starts } = operands;
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); N]; R];
        for n in 0..N {
            let start = _mm256_loadu_si256(starts.as_ptr().add(lane + n * 8).cast());
            for r in 0..R {
                sums[r][n] = start;
            }
        }
        let (keys, queries) = (keys.as_ptr().add(row * depth), queries.as_ptr().add(lane));
        for d in 0..depth {
            let mut columns = [_mm256_setzero_si256(); N];
            for n in 0..N {
                columns[n] = _mm256_loadu_si256(queries.add(d * starts.len() + n * 8).cast());
            }
            for r in 0..R {
                let key = _mm256_set1_epi32(*keys.add(r * depth + d) as i32);
                for n in 0..N {
                    sums[r][n] = _mm256_dpbusd_avx_epi32(sums[r][n], key, columns[n]);
                }
            }
        }
        let mut bits = 0;
        for r in 0..R {
            let mut all = sums[r][0];
            for n in 1..N {
                all = _mm256_and_si256(all, sums[r][n]);
            }
            bits |= u64::from(_mm256_movemask_ps(_mm256_castsi256_ps(all)) != 0xff) << r;
        }
        bits
    }
}
