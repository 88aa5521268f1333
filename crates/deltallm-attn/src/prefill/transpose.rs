//! Queries into lanes, and results out of them.

use deltallm_simd::{
    Isa, dispatch,
    fearless_simd::{f32x8, prelude::*},
};

/// Rows and columns of a block that is transposed in registers.
const BLOCK: usize = 8;

/// `out[column * out_stride + row] = rows[row * stride + column] * factor` for a matrix of `count` rows and `columns`
/// columns.
pub(crate) fn transpose(
    isa: Isa,
    rows: &[f32],
    stride: usize,
    [count, columns]: [usize; 2],
    factor: f32,
    out: &mut [f32],
    out_stride: usize,
) {
    dispatch!(isa, simd => in_blocks(simd, rows, stride, [count, columns], factor, out, out_stride));
}

/// In blocks of eight by eight.
#[inline(always)]
fn in_blocks<S: Simd>(
    simd: S,
    rows: &[f32],
    stride: usize,
    [count, columns]: [usize; 2],
    factor: f32,
    out: &mut [f32],
    out_stride: usize,
) {
    let (whole_rows, whole_columns) = (count / BLOCK * BLOCK, columns / BLOCK * BLOCK);
    for row in (0..whole_rows).step_by(BLOCK) {
        for column in (0..whole_columns).step_by(BLOCK) {
            let mut block = [f32x8::splat(simd, 0.0); BLOCK];
            for (r, vector) in block.iter_mut().enumerate() {
                let source = &rows[(row + r) * stride + column..][..BLOCK];
                *vector = f32x8::from_slice(simd, source) * factor;
            }
            let block = zip_halves(zip_halves(zip_halves(block)));
            for (c, vector) in block.iter().enumerate() {
                vector.store_slice(&mut out[(column + c) * out_stride + row..][..BLOCK]);
            }
        }
    }
    // What whole blocks leave: the last rows whole, and the last columns of the others.
    for row in 0..count {
        let first = if row < whole_rows { whole_columns } else { 0 };
        for column in first..columns {
            out[column * out_stride + row] = rows[row * stride + column] * factor;
        }
    }
}

/// Interleaves every row of the upper half with one of the lower half. Three times, and eight rows are transposed.
#[inline(always)]
fn zip_halves<S: Simd>(rows: [f32x8<S>; BLOCK]) -> [f32x8<S>; BLOCK] {
    let [a, b, c, d, e, f, g, h] = rows;
    [
        a.zip_low(e),
        a.zip_high(e),
        b.zip_low(f),
        b.zip_high(f),
        c.zip_low(g),
        c.zip_high(g),
        d.zip_low(h),
        d.zip_high(h),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_transposed_by_every_instruction_set() {
        for isa in Isa::available() {
            for (count, columns) in [(1, 1), (3, 5), (4, 4), (4, 9), (11, 64), (32, 80), (33, 3)] {
                let (stride, out_stride) = (columns + 2, count + 3);
                let rows: Vec<f32> = (0..count * stride).map(|x| x as f32).collect();
                let mut out = vec![-1.0; columns * out_stride];
                transpose(isa, &rows, stride, [count, columns], 2.0, &mut out, out_stride);
                for (i, x) in out.iter().enumerate() {
                    let (column, row) = (i / out_stride, i % out_stride);
                    let expected = if row < count { 2.0 * (row * stride + column) as f32 } else { -1.0 };
                    assert_eq!(*x, expected, "{isa}: {count} x {columns}, [{column}][{row}]");
                }
            }
        }
    }
}
