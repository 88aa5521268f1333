//! 8-bit products with the dot-product extension of Arm.

use std::arch::{aarch64::*, asm, is_aarch64_feature_detected};

use super::Operands;

/// Whether the CPU has what [`candidates`] needs.
pub(super) fn detect() -> bool {
    is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")
}

/// Bit `i`: the sum of key `i` ends at zero or above in some lane. The CPU has the instructions ([`detect`]).
pub(super) fn candidates(operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(4));
    // SAFETY: a `Filter` with `Dots::Neon` is made by `detect` alone; the sizes were checked here and in `Operands::new`.
    unsafe { panels(operands) }
}

/// # Safety
/// The CPU has the dot-product extension, and the lanes are a multiple of 4.
#[target_feature(enable = "neon,dotprod")]
unsafe fn panels(operands: Operands) -> u64 {
    let lanes = operands.starts.len();
    let (mut bits, mut lane) = (0, 0);
    while lane < lanes {
        // Four keys divide a block, and 16 sums hide the latency of four instructions a cycle.
        // SAFETY: as the caller promises; as many vectors are left.
        let (more, vectors) = unsafe {
            match (lanes - lane) / 4 {
                1 => (panel::<8, 1>(operands, lane), 1),
                2 => (panel::<8, 2>(operands, lane), 2),
                3 => (panel::<4, 3>(operands, lane), 3),
                _ => (panel::<4, 4>(operands, lane), 4),
            }
        };
        (bits, lane) = (bits | more, lane + 4 * vectors);
    }
    bits
}

/// The keys that are wanted by the `N` vectors at `lane`, `R` at a time.
///
/// # Safety
/// As [`panels`], and `lane / 4 + N` vectors there are.
#[inline(always)]
unsafe fn panel<const R: usize, const N: usize>(operands: Operands, lane: usize) -> u64 {
    let (mut bits, mut row) = (0, 0);
    while row < operands.rows() {
        // SAFETY: as the caller promises; fewer than R rows are left only if R is 1.
        unsafe {
            if row + R <= operands.rows() {
                bits |= wanted::<R, N>(operands, row, lane) << row;
                row += R;
            } else {
                bits |= wanted::<1, N>(operands, row, lane) << row;
                row += 1;
            }
        }
    }
    bits
}

/// The products of `R` keys and `N` vectors, kept in registers: every loop over them has a constant count.
///
/// # Safety
/// As [`panels`]; rows `row..row + R` and vectors `lane / 4..lane / 4 + N` are inside the operands.
#[inline(always)]
unsafe fn wanted<const R: usize, const N: usize>(operands: Operands, row: usize, lane: usize) -> u64 {
    let Operands { keys, depth, queries, starts } = operands;
    let lanes = starts.len();
    // SAFETY: as the caller promises. Four quads of a key are read only where four are left.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); N]; R];
        for n in 0..N {
            let start = vld1q_s32(starts.as_ptr().add(lane + n * 4));
            for r in 0..R {
                sums[r][n] = start;
            }
        }
        let keys = keys.as_ptr().add(row * depth).cast::<i32>();
        let queries = queries.as_ptr().add(lane).cast::<i32>();
        let mut quads = [vdupq_n_s32(0); R];
        let mut d = 0;
        while d + 4 <= depth {
            for r in 0..R {
                quads[r] = vld1q_s32(keys.add(r * depth + d));
            }
            let query = queries.add(d * lanes);
            add_products::<R, N, 0>(&mut sums, &quads, query);
            add_products::<R, N, 1>(&mut sums, &quads, query.add(lanes));
            add_products::<R, N, 2>(&mut sums, &quads, query.add(2 * lanes));
            add_products::<R, N, 3>(&mut sums, &quads, query.add(3 * lanes));
            d += 4;
        }
        while d < depth {
            for r in 0..R {
                quads[r] = vld1q_dup_s32(keys.add(r * depth + d));
            }
            add_products::<R, N, 0>(&mut sums, &quads, queries.add(d * lanes));
            d += 1;
        }
        let mut bits = 0;
        for r in 0..R {
            // Of an "and", the sign says whether all are below zero.
            let mut all = sums[r][0];
            for n in 1..N {
                all = vandq_s32(all, sums[r][n]);
            }
            bits |= u64::from(vmaxvq_s32(all) >= 0) << r;
        }
        bits
    }
}

/// Adds the products of quad `Q` of every key with the `N` vectors at `query`.
///
/// # Safety
/// As [`panels`]; at `query` there are `N` vectors.
#[inline(always)]
unsafe fn add_products<const R: usize, const N: usize, const Q: usize>(
    sums: &mut [[int32x4_t; N]; R],
    quads: &[int32x4_t; R],
    query: *const i32,
) {
    for n in 0..N {
        // SAFETY: as the caller promises.
        unsafe {
            let column = vld1q_s32(query.add(n * 4));
            for r in 0..R {
                sums[r][n] = dot::<Q>(sums[r][n], column, quads[r]);
            }
        }
    }
}

/// `sums[i] + a[i] . b[Q]`, for vectors of four quads. The intrinsic, `vdotq_laneq_s32`, is not stable yet.
///
/// # Safety
/// As [`panels`].
#[inline(always)]
unsafe fn dot<const Q: usize>(mut sums: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
    // SAFETY: the CPU has the instruction, as the caller promises; it reads and writes these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{q}]",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            q = const Q,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
