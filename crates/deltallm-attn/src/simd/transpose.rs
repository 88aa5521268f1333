//! Queries into lanes, and results out of them.

use fearless_simd::{f32x4, prelude::*};

/// `out[column * out_stride + row] = rows[row * stride + column] * factor` for a matrix of `count` rows and `columns`
/// columns, in blocks of four by four.
#[inline(always)]
pub(super) fn transpose<S: Simd>(
    simd: S,
    rows: &[f32],
    stride: usize,
    [count, columns]: [usize; 2],
    factor: f32,
    out: &mut [f32],
    out_stride: usize,
) {
    let (whole_rows, whole_columns) = (count / 4 * 4, columns / 4 * 4);
    for row in (0..whole_rows).step_by(4) {
        for column in (0..whole_columns).step_by(4) {
            let source = |r: usize| &rows[(row + r) * stride + column..][..4];
            let a = f32x4::from_slice(simd, source(0)) * factor;
            let b = f32x4::from_slice(simd, source(1)) * factor;
            let c = f32x4::from_slice(simd, source(2)) * factor;
            let d = f32x4::from_slice(simd, source(3)) * factor;
            let (ac, bd) = ((a.zip_low(c), a.zip_high(c)), (b.zip_low(d), b.zip_high(d)));
            ac.0.zip_low(bd.0).store_slice(&mut out[column * out_stride + row..][..4]);
            ac.0.zip_high(bd.0).store_slice(&mut out[(column + 1) * out_stride + row..][..4]);
            ac.1.zip_low(bd.1).store_slice(&mut out[(column + 2) * out_stride + row..][..4]);
            ac.1.zip_high(bd.1).store_slice(&mut out[(column + 3) * out_stride + row..][..4]);
        }
    }
    // What four by four blocks leave: the last rows whole, and the last columns of the others.
    for row in 0..count {
        let first = if row < whole_rows { whole_columns } else { 0 };
        for column in first..columns {
            out[column * out_stride + row] = rows[row * stride + column] * factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::simd::SimdLevel;

    #[test]
    fn every_size_is_transposed_at_every_level() {
        for simd in SimdLevel::available() {
            for (count, columns) in [(1, 1), (3, 5), (4, 4), (4, 9), (11, 64), (32, 80), (33, 3)] {
                let (stride, out_stride) = (columns + 2, count + 3);
                let rows: Vec<f32> = (0..count * stride).map(|x| x as f32).collect();
                let mut out = vec![-1.0; columns * out_stride];
                simd.transpose(&rows, stride, [count, columns], 2.0, &mut out, out_stride);
                for (i, x) in out.iter().enumerate() {
                    let (column, row) = (i / out_stride, i % out_stride);
                    let expected = if row < count { 2.0 * (row * stride + column) as f32 } else { -1.0 };
                    assert_eq!(*x, expected, "{simd}: {count} x {columns}, [{column}][{row}]");
                }
            }
        }
    }
}
