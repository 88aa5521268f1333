//! The layer against plain loops.

use ndarray::{Array2, s};
use proptest::prelude::*;

use super::*;

/// Weights -1, 0, 1 that look random.
fn weights(rows: usize, columns: usize, seed: u64) -> Array2<i8> {
    let mut state = seed | 1;
    Array2::from_shape_simple_fn((rows, columns), || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) % 3) as i8 - 1
    })
}

fn linear(weights: &Array2<i8>, scale: f32) -> TernaryLinear {
    let fill = |row: usize, out: &mut [i8]| {
        weights.row(row).iter().zip(out).for_each(|(weight, out)| *out = *weight);
        Ok::<_, TernaryError>(())
    };
    TernaryLinear::from_rows(weights.nrows(), weights.ncols(), scale, fill).unwrap()
}

/// `ActQuant` and the product, number by number.
fn plain(weights: &Array2<i8>, scale: f32, x: &ArrayView2<f32>) -> Array2<f32> {
    let mut y = Array2::zeros((x.nrows(), weights.nrows()));
    for (x, mut y) in x.outer_iter().zip(y.outer_iter_mut()) {
        let s = 127.0 / x.iter().fold(0.0_f32, |max, x| max.max(x.abs())).max(1e-5);
        let q: Vec<i32> = x.iter().map(|x| (x * s).round_ties_even().clamp(-128.0, 127.0) as i32).collect();
        for (weights, y) in weights.outer_iter().zip(&mut y) {
            let sum: i32 = weights.iter().zip(&q).map(|(weight, q)| i32::from(*weight) * q).sum();
            *y = sum as f32 * (scale / s);
        }
    }
    y
}

#[test]
fn rows_come_back_as_they_went_in() {
    for (rows, columns) in [(1, 1), (16, 16), (17, 33), (40, 100)] {
        let weights = weights(rows, columns, 5);
        let linear = linear(&weights, 1.5);
        let mut row = vec![7; columns];
        for (r, expected) in weights.outer_iter().enumerate() {
            linear.row(r, &mut row);
            assert_eq!(row, expected.to_vec());
        }
        assert_eq!((linear.rows(), linear.columns(), linear.scale()), (rows, columns, 1.5));
        assert_eq!(linear.bytes(), rows.next_multiple_of(16) * columns.next_multiple_of(16) / 4);
    }
}

#[test]
fn what_is_not_ternary_is_refused() {
    let make = |rows, columns, scale, weight: i8| {
        let fill = |row: usize, out: &mut [i8]| {
            out.fill(0);
            if row == 18 {
                out[3] = weight;
            }
            Ok::<_, TernaryError>(())
        };
        TernaryLinear::from_rows(rows, columns, scale, fill).unwrap_err().to_string()
    };
    for weight in [2, -2, i8::MAX, i8::MIN] {
        let error = make(20, 5, 1.0, weight);
        assert!(error.contains(&format!("got {weight} at row 18, column 3")), "{error}");
    }
    for scale in [f32::NAN, f32::INFINITY] {
        assert!(make(20, 5, scale, 0).contains("finite scale"));
    }
    for (rows, columns) in [(0, 5), (5, 0), (1, TernaryLinear::MAX_COLUMNS + 1)] {
        assert!(make(rows, columns, 1.0, 0).contains("at least one row"));
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_the_others_are_not_touched() {
    let (weights, mut x) = (weights(5, 20, 1), Array2::from_elem((3, 20), 0.5));
    let linear = linear(&weights, 1.0);
    let expected = linear.apply(&x.view());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        x[[1, 7]] = bad;
        let y = linear.apply(&x.view());
        assert!(y.row(1).iter().all(|y| y.is_nan()));
        assert_eq!(y.row(0), expected.row(0));
        assert_eq!(y.row(2), expected.row(2));
    }
}

#[test]
fn strides_do_not_matter() {
    let x = Array2::from_shape_fn((6, 40), |(i, j)| (i * 40 + j) as f32 * 0.1 - 10.0);
    let weights = weights(20, 20, 3);
    let view = x.slice(s![..;-2, ..;2]);
    assert_eq!(linear(&weights, 0.3).apply(&view), plain(&weights, 0.3, &view));
}

proptest! {
    #[test]
    fn equals_plain_loops_bit_for_bit(
        rows in 1_usize..70, columns in 1_usize..200, tokens in 0_usize..6, scale in -2.0_f32..2.0, seed: u64,
    ) {
        let weights = weights(rows, columns, seed);
        let x = Array2::from_shape_fn((tokens, columns), |(i, j)| {
            ((i * 31 + j * 17) as f32 + (seed % 1000) as f32).sin() * 3.0
        });
        prop_assert_eq!(linear(&weights, scale).apply(&x.view()), plain(&weights, scale, &x.view()));
    }
}
