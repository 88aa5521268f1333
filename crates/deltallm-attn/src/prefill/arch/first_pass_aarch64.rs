//! 8-bit products with the dot-product extension of Arm.

use deltallm_simd::{
    fearless_simd::{Neon, i32x4, prelude::*, u32x4},
    features::DotProd,
};

use crate::prefill::first_pass::operands::Operands;

/// Bit `i`: the sum of key `i` ends at zero or above in some lane.
pub(crate) fn candidates(dot_prod: DotProd, operands: Operands) -> u64 {
    assert!(operands.starts.len().is_multiple_of(WIDTH));
    dot_prod.vectorize(
        #[inline(always)]
        || panels(dot_prod, operands),
    )
}

/// Lanes of a vector, and quads.
const WIDTH: usize = 4;

#[inline(always)]
fn panels(dot_prod: DotProd, operands: Operands) -> u64 {
    let lanes = operands.starts.len();
    let (mut bits, mut lane) = (0, 0);
    while lane < lanes {
        // Four keys divide a block, and 16 sums hide the latency of four instructions a cycle.
        let (more, vectors) = match (lanes - lane) / WIDTH {
            1 => (panel::<8, 1>(dot_prod, operands, lane), 1),
            2 => (panel::<8, 2>(dot_prod, operands, lane), 2),
            3 => (panel::<4, 3>(dot_prod, operands, lane), 3),
            _ => (panel::<4, 4>(dot_prod, operands, lane), 4),
        };
        (bits, lane) = (bits | more, lane + WIDTH * vectors);
    }
    bits
}

/// The keys that are wanted by the `N` vectors at `lane`, `R` at a time.
#[inline(always)]
fn panel<const R: usize, const N: usize>(dot_prod: DotProd, operands: Operands, lane: usize) -> u64 {
    let (mut bits, mut row) = (0, 0);
    while row + R <= operands.rows() {
        bits |= wanted::<R, N>(dot_prod, operands, row, lane) << row;
        row += R;
    }
    while row < operands.rows() {
        bits |= wanted::<1, N>(dot_prod, operands, row, lane) << row;
        row += 1;
    }
    bits
}

/// The products of `R` keys and `N` vectors, kept in registers: every loop over them has a constant count.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
fn wanted<const R: usize, const N: usize>(
    dot_prod: DotProd,
    operands: Operands,
    row: usize,
    lane: usize,
) -> u64 {
    let Operands { keys, depth, queries, starts } = operands;
    let (simd, lanes) = (dot_prod.neon(), starts.len());
    let zero = i32x4::splat(simd, 0);
    let mut sums = [[zero; N]; R];
    let columns = &starts[lane..][..N * WIDTH];
    for n in 0..N {
        let start = i32x4::from_slice(simd, &columns[n * WIDTH..][..WIDTH]);
        for r in 0..R {
            sums[r][n] = start;
        }
    }
    let mut rows = [&[][..]; R];
    for r in 0..R {
        rows[r] = &keys[(row + r) * depth..][..depth];
    }
    let mut quads = [u32x4::splat(simd, 0); R];
    let mut fours = queries.chunks_exact(4 * lanes);
    for (four, queries) in fours.by_ref().enumerate() {
        for r in 0..R {
            quads[r] = u32x4::from_slice(simd, &rows[r][WIDTH * four..][..WIDTH]);
        }
        add_products::<R, N, 0>(dot_prod, &mut sums, &quads, &queries[lane..]);
        add_products::<R, N, 1>(dot_prod, &mut sums, &quads, &queries[lanes + lane..]);
        add_products::<R, N, 2>(dot_prod, &mut sums, &quads, &queries[2 * lanes + lane..]);
        add_products::<R, N, 3>(dot_prod, &mut sums, &quads, &queries[3 * lanes + lane..]);
    }
    let rest = depth / WIDTH * WIDTH..depth;
    for (d, queries) in rest.zip(fours.remainder().chunks_exact(lanes)) {
        for r in 0..R {
            quads[r] = u32x4::splat(simd, rows[r][d]);
        }
        add_products::<R, N, 0>(dot_prod, &mut sums, &quads, &queries[lane..]);
    }
    let mut bits = 0;
    for r in 0..R {
        // Of an "and", the sign says whether all are below zero.
        let mut all = sums[r][0];
        for n in 1..N {
            all &= sums[r][n];
        }
        bits |= u64::from(!all.simd_lt(zero).all_true()) << r;
    }
    bits
}

/// Adds the products of quad `Q` of every key with the `N` vectors that `queries` begins with.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]
fn add_products<const R: usize, const N: usize, const Q: usize>(
    dot_prod: DotProd,
    sums: &mut [[i32x4<Neon>; N]; R],
    quads: &[u32x4<Neon>; R],
    queries: &[u32],
) {
    let queries = &queries[..N * WIDTH];
    for n in 0..N {
        let column = u32x4::from_slice(dot_prod.neon(), &queries[n * WIDTH..][..WIDTH]);
        for r in 0..R {
            sums[r][n] = dot_prod.dot_lane::<Q>(sums[r][n], column.bitcast(), quads[r].bitcast());
        }
    }
}
