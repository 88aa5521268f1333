//! The layer against plain loops.

use deltallm_testing::Random;
use ndarray::{Array2, s};
use proptest::prelude::*;

use super::{layout::QUADS, *};
use crate::linear::kernels::Quad;

/// Weights -1, 0, 1 that look random.
fn weights(rows: usize, columns: usize, seed: u64) -> Array2<i8> {
    let mut random = Random::new(seed);
    Array2::from_shape_simple_fn((rows, columns), || random.below(3) as i8 - 1)
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
fn large_products_are_the_same_on_several_threads() {
    let mut random = Random::new(10);
    let (weights, x) = (weights(300, 2000, 9), Array2::from_shape_simple_fn((40, 2000), || random.number()));
    let linear = linear(&weights, 0.7);
    for tokens in [1, 3, 40] {
        let x = x.slice(s![..tokens, ..]);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| linear.apply(&x).unwrap())
        };
        let expected = plain(&weights, 0.7, &x);
        assert_eq!(on(1), expected);
        assert_eq!(on(3), expected);
    }
}

#[test]
fn rows_come_back_as_they_went_in() {
    for (rows, columns) in [(1, 1), (16, 16), (17, 33), (40, 100)] {
        let weights = weights(rows, columns, 5);
        let linear = linear(&weights, 1.5);
        let mut row = vec![7; columns];
        for (r, expected) in weights.outer_iter().enumerate() {
            linear.row(r, &mut row).unwrap();
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
    let expected = linear.apply(&x.view()).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        x[[1, 7]] = bad;
        let y = linear.apply(&x.view()).unwrap();
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
    assert_eq!(linear(&weights, 0.3).apply(&view).unwrap(), plain(&weights, 0.3, &view));
}

/// The sums of every kernel, of one token and of several, against the plain loops. `quads` is `[quads, tokens]`.
fn compare(panels: &[Line], quads: &[Quad], tokens: usize) -> Result<(), TestCaseError> {
    let count = panels.len() * QUADS * tokens / quads.len();
    let mut codes = vec![Line::ZERO; panels.len() * 4];
    layout::unpack(panels, &mut codes);
    let mut expected = vec![[1; PANEL]; count * tokens];
    scalar::matrix(&codes, quads, tokens, &mut expected);
    for kernel in ByteKernel::available() {
        let mut sums = vec![[2; PANEL]; count * tokens];
        if tokens <= simd::tokens(kernel) {
            simd::matrix(kernel, &codes, quads, tokens, &mut sums);
            prop_assert_eq!(&sums, &expected, "{}, {} tokens", kernel, tokens);
        }
        for token in 0..tokens {
            let quads: Vec<_> = quads.iter().skip(token).step_by(tokens).copied().collect();
            simd::vector(kernel, WeightOrder::default(), panels, &quads, &mut sums[..count]);
            prop_assert_eq!(
                &sums[..count],
                &expected[token * count..][..count],
                "{}, token {}",
                kernel,
                token
            );
        }
    }
    Ok(())
}

#[test]
fn the_largest_sums_fit() {
    // All codes 2 or all 0, 1, 2 by row; all activations at one end; as many columns as one may have, and fewer.
    for columns in [16, 128, 144, 1024, 1040, TernaryLinear::MAX_COLUMNS] {
        for byte in [0xaa, 0x55, 0x00] {
            for code in [-128, -127, 127] {
                let panels = vec![Line([byte; 64]); columns / 16];
                compare(&panels, &vec![[code; 4]; columns / 4], 1).unwrap();
                if columns < 2000 {
                    compare(&panels, &vec![[code; 4]; columns / 4 * 5], 5).unwrap();
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn kernels_agree_with_plain_loops(
        panels in 1_usize..=3, lines in 1_usize..100, tokens in 1_usize..=MAX_TOKENS, ends: bool, seed: u64,
    ) {
        let random = weights(panels * lines, 64 * 4, seed);
        let lines_of = random.outer_iter().map(|codes| {
            Line(std::array::from_fn(|byte| {
                (0..4).fold(0, |bits, i| bits | ((codes[byte * 4 + i] + 1) as u8) << (2 * i))
            }))
        });
        let lines_of: Vec<_> = lines_of.collect();
        let mut random = Random::new(seed);
        let quads: Vec<Quad> = (0..lines * QUADS * tokens).map(|_| {
            let bytes = ((random.bits() >> 32) as u32).to_ne_bytes().map(u8::cast_signed);
            if ends { bytes.map(|x| if x < 0 { -128 } else { 127 }) } else { bytes }
        }).collect();
        compare(&lines_of, &quads, tokens)?;
    }

    #[test]
    fn equals_plain_loops_bit_for_bit(
        rows in 1_usize..70, columns in 1_usize..200, tokens in 0_usize..30, scale in -2.0_f32..2.0, seed: u64,
    ) {
        let weights = weights(rows, columns, seed);
        let mut random = Random::scattered(!seed);
        let x = Array2::from_shape_simple_fn((tokens, columns), || 3.0 * random.number());
        let expected = plain(&weights, scale, &x.view());
        for kernel in ByteKernel::available() {
            let linear = linear(&weights, scale).with_kernel(kernel);
            prop_assert_eq!(&linear.apply(&x.view()).unwrap(), &expected, "{}", kernel);
        }
    }
}
