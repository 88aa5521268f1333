//! The layer against plain loops.

use deltallm_testing::Random;
use ndarray::{Array2, s};
use proptest::prelude::*;

use super::{
    activations::{BlockScale, LEAST},
    *,
};
use crate::quant::{Factors, codes::unpack, dequantize};

const TYPES: [TensorType; 8] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// Where a block of a type has 16-bit floats.
fn floats(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q6_K => &[208],
        _ => &[0, 2],
    }
}

/// Rows of blocks that look random, with scales and minima of both signs up to 8.
fn blocks(ty: TensorType, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::scattered(seed);
    let mut next = || (random.bits() >> 32) as u32;
    let count = rows * columns / ty.block_elements();
    let mut bytes: Vec<u8> = (0..count * ty.block_bytes()).map(|_| next() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in floats(ty) {
            // An exponent below that of 8, or a subnormal number.
            let float = (next() as u16 & 0x83ff) | ((next() % 18) as u16) << 10;
            block[at..at + 2].copy_from_slice(&float.to_le_bytes());
        }
    }
    bytes
}

fn linear(ty: TensorType, rows: usize, columns: usize, bytes: &[u8]) -> QuantisedLinear {
    let length = bytes.len() / rows;
    QuantisedLinear::from_rows(ty, rows, columns, |row| &bytes[row * length..][..length]).unwrap()
}

fn dense(ty: TensorType, rows: usize, columns: usize, bytes: &[u8]) -> Array2<f32> {
    let mut values = vec![0.0; rows * columns];
    dequantize(ty, bytes, &mut values).unwrap();
    Array2::from_shape_vec((rows, columns), values).unwrap()
}

/// Columns of a type: so many of its blocks, or of 32 columns where it has larger ones.
fn columns_of(ty: TensorType, blocks: usize) -> usize {
    if ty.block_elements() == 32 { blocks * 32 } else { blocks.div_ceil(4) * 256 }
}

/// Activations that differ in magnitude from block to block.
fn tokens(tokens: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut random = Random::scattered(!seed);
    Array2::from_shape_fn((tokens, columns), |(i, j)| {
        let scale = 10.0_f32.powi(((i * 5 + j / 16 * 3 + seed as usize % 7) % 9) as i32 - 4);
        random.number() * scale
    })
}

/// The product in f64 and how far a result may be from it: half a step of the activations, and what sums in f32 round off, of
/// parts that may cancel (codes from 0 on, and minima).
fn exact(
    ty: TensorType,
    bytes: &[u8],
    dense: &Array2<f32>,
    x: &ArrayView2<f32>,
) -> (Array2<f64>, Array2<f64>) {
    let block = Form::of(ty).unwrap().block();
    let (mut codes, mut factors) = (vec![0; dense.len()], vec![Factors::default(); dense.len() / block]);
    unpack(ty, bytes, &mut codes, &mut factors);
    let blocks = dense.ncols() / block;
    let shape = (x.nrows(), dense.nrows());
    let (mut y, mut bound) = (Array2::zeros(shape), Array2::zeros(shape));
    for ((token, row), y) in y.indexed_iter_mut() {
        let (x, w) = (x.row(token).to_vec(), dense.row(row).to_vec());
        *y = x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        let factors = &factors[row * blocks..][..blocks];
        for ((x, w), factors) in x.chunks(block).zip(w.chunks(block)).zip(factors) {
            let largest = f64::from(x.iter().fold(LEAST, |most, x| most.max(x.abs())));
            let size = w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
            let parts = 255.0 * f64::from(factors.scale.abs()) + f64::from(factors.minimum.abs());
            let rounding = (blocks + 4) as f64 * f64::from(f32::EPSILON) * parts * block as f64;
            bound[[token, row]] += (size / 254.0 + rounding) * largest;
        }
    }
    (y, bound)
}

#[test]
fn rows_come_back_as_they_are_in_the_file() {
    for ty in TYPES {
        for (rows, blocks_of) in [(1, 1), (16, 2), (35, 5)] {
            let columns = columns_of(ty, blocks_of);
            let bytes = blocks(ty, rows, columns, 5);
            let (linear, dense) = (linear(ty, rows, columns, &bytes), dense(ty, rows, columns, &bytes));
            let mut row = vec![7.0; columns];
            for (r, expected) in dense.outer_iter().enumerate() {
                linear.row(r, &mut row).unwrap();
                if ty.block_elements() == 32 {
                    assert_eq!(row, expected.to_vec(), "{ty}");
                }
            }
            assert_eq!((linear.rows(), linear.columns(), linear.tensor_type()), (rows, columns, ty));
        }
    }
}

#[test]
fn the_factors_of_k_quants_are_rounded_within_their_bound() {
    for ty in [TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K] {
        let bytes = blocks(ty, 20, 512, 77);
        let linear = linear(ty, 20, 512, &bytes);
        let form = Form::of(ty).unwrap();
        let (mut codes, mut factors) = (vec![0; 512], vec![Factors::default(); 512 / form.block()]);
        let mut row = vec![0.0; 512];
        for (r, bytes) in bytes.chunks_exact(bytes.len() / 20).enumerate() {
            unpack(ty, bytes, &mut codes, &mut factors);
            linear.row(r, &mut row).unwrap();
            let mut expected = vec![0.0; 512];
            dequantize(ty, bytes, &mut expected).unwrap();
            for (column, (got, expected)) in row.iter().zip(&expected).enumerate() {
                let factors = factors[column / form.block()];
                let code = (f32::from(codes[column]) - f32::from(form.offset())).abs();
                let off = |factor: f32| factor.abs() / 2048.0 + 2.0_f32.powi(-25);
                let bound = (code * off(factors.scale) + off(factors.minimum)) * 1.001;
                assert!((got - expected).abs() <= bound, "{ty} {got} {expected} {bound}");
            }
        }
    }
}

#[test]
fn memory_is_what_the_layout_says() {
    for (ty, bits) in [
        (TensorType::Q4_0, 4.5),
        (TensorType::Q4_1, 5.0),
        (TensorType::Q4_K, 5.0),
        (TensorType::Q5_0, 5.5),
        (TensorType::Q5_1, 6.0),
        (TensorType::Q5_K, 6.0),
        (TensorType::Q6_K, 7.0),
        (TensorType::Q8_0, 8.5),
    ] {
        let linear = linear(ty, 33, 256, &blocks(ty, 33, 256, 1));
        assert_eq!(linear.bytes() as f64, 48.0 * 256.0 * bits / 8.0, "{ty}");
    }
}

#[test]
fn large_products_are_the_same_on_several_threads() {
    let bytes = blocks(TensorType::Q4_1, 300, 1024, 9);
    let (linear, x) = (linear(TensorType::Q4_1, 300, 1024, &bytes), tokens(150, 1024, 3));
    for tokens in [1, 3, 64, 65, 150] {
        let x = x.slice(s![..tokens, ..]);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| linear.apply(&x).unwrap())
        };
        let expected = on(1);
        assert_eq!(on(2), expected);
        assert_eq!(on(5), expected);
        // Nor does it matter what other tokens there are.
        let last = linear.apply(&x.slice(s![tokens - 1.., ..])).unwrap();
        assert_eq!(last.row(0), expected.row(tokens - 1));
    }
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let make = |ty, rows, columns, bytes: &[u8]| {
        QuantisedLinear::from_rows(ty, rows, columns, |_| bytes).unwrap_err().to_string()
    };
    assert!(make(TensorType::F16, 1, 32, &[0; 64]).contains("got F16"));
    assert!(make(TensorType::TQ2_0, 1, 256, &[0; 66]).contains("got TQ2_0"));
    for (rows, columns) in [(0, 32), (1, 0), (1, 31), (1, 33)] {
        assert!(make(TensorType::Q4_0, rows, columns, &[0; 18]).contains("whole blocks of 32 columns"));
    }
    assert!(make(TensorType::Q4_0, 1, 32, &[0; 17]).contains("expected 18 bytes, got 17"));
    // The largest float of 16 bits times a group's scale of 1 and of 2.
    let mut block = [0; 144];
    block[..2].copy_from_slice(&0x7bff_u16.to_le_bytes());
    block[5] = 1;
    QuantisedLinear::from_rows(TensorType::Q4_K, 1, 256, |_| &block).unwrap();
    block[5] = 2;
    assert!(make(TensorType::Q4_K, 1, 256, &block).contains("got 131008 at row 0, from column 32 on"));
}

#[test]
fn scales_and_minima_that_are_not_finite_are_refused() {
    for ty in TYPES {
        let columns = columns_of(ty, 8);
        for &at in floats(ty) {
            for float in [0x7e00_u16, 0x7c00, 0xfc00] {
                let mut bytes = blocks(ty, 20, columns, 3);
                let length = bytes.len() / 20;
                let place = 18 * length + (columns / ty.block_elements() - 1) * ty.block_bytes() + at;
                bytes[place..place + 2].copy_from_slice(&float.to_le_bytes());
                let packed =
                    QuantisedLinear::from_rows(ty, 20, columns, |row| &bytes[row * length..][..length]);
                let from = columns - ty.block_elements();
                match packed {
                    Err(QuantisedError::NonFinite { row: 18, column, got }) => {
                        assert!(column == from && !got.is_finite(), "{ty} {column}");
                    }
                    other => panic!("{ty}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_token_that_is_not_finite_is_nan_and_the_others_are_not_touched() {
    for ty in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0] {
        let bytes = blocks(ty, 5, 64, 1);
        for kernel in ByteKernel::available() {
            let linear = linear(ty, 5, 64, &bytes).with_kernel(kernel);
            let mut x = tokens(3, 64, 2);
            let expected = linear.apply(&x.view()).unwrap();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[[1, 37]] = bad;
                let y = linear.apply(&x.view()).unwrap();
                assert!(y.row(1).iter().all(|y| y.is_nan()), "{ty} {kernel}");
                assert_eq!(y.row(0), expected.row(0));
                assert_eq!(y.row(2), expected.row(2));
            }
        }
    }
}

#[test]
fn strides_do_not_matter() {
    let x = tokens(6, 128, 4);
    let view = x.slice(s![..;-2, ..;2]);
    let linear = linear(TensorType::Q4_1, 20, 64, &blocks(TensorType::Q4_1, 20, 64, 3));
    assert_eq!(linear.apply(&view), linear.apply(&view.to_owned().view()));
}

#[test]
fn the_largest_sums_fit() {
    // All codes the largest or the smallest, all activations at one end.
    for ty in TYPES {
        let columns = columns_of(ty, 8);
        for byte in [0xff, 0x80, 0x7f, 0x00] {
            let mut bytes = vec![byte; 17 * columns / ty.block_elements() * ty.block_bytes()];
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                for &at in floats(ty) {
                    block[at..at + 2].copy_from_slice(&0x3c00_u16.to_le_bytes());
                }
            }
            let dense = dense(ty, 17, columns, &bytes);
            for x in [127.0, -127.0] {
                let x = Array2::from_elem((7, columns), x);
                let expected = x.dot(&dense.t());
                for kernel in ByteKernel::available() {
                    let y = linear(ty, 17, columns, &bytes).with_kernel(kernel).apply(&x.view()).unwrap();
                    let off = (&y - &expected).mapv(f32::abs);
                    let size = dense.row(0).iter().map(|w| w.abs()).sum::<f32>() * 127.0;
                    assert!(off.iter().all(|off| *off <= 1e-3 * size), "{ty} {kernel} {byte}");
                }
            }
        }
    }
}

#[test]
fn all_tokens_and_panels_of_a_call_are_added_to_what_is_there() {
    let (form, bytes) = (Form::of(TensorType::Q4_1).unwrap(), blocks(TensorType::Q4_1, 128, 64, 8));
    let packed = linear(TensorType::Q4_1, 128, 64, &bytes);
    for (kernel, count) in ByteKernel::available().into_iter().flat_map(|kernel| [(kernel, 1), (kernel, 9)]) {
        let x = tokens(count, 64, 1);
        let mut activations = BlockActivations::default();
        activations.round(kernel, &x.view(), form);
        let batch = activations.batches().next().unwrap();
        let panels: Vec<_> = (0..simd::panels(kernel, count)).map(|p| packed.panels.panel(p)).collect();
        let mut sums = vec![[100.0; PANEL]; count * panels.len()];
        simd::multiply(kernel, WeightOrder::default(), form, &panels, batch, &mut sums);
        for (p, panel) in panels.iter().enumerate() {
            let mut expected = vec![[100.0; PANEL]; count];
            scalar::multiply(form, panel, batch, &mut expected);
            let sums: Vec<_> = sums.iter().skip(p).step_by(panels.len()).copied().collect();
            assert_eq!(sums, expected, "{kernel} {count} {p}");
        }
        assert_ne!(batch.scales[0], BlockScale::default());
    }
}

proptest! {
    #[test]
    fn every_level_gives_the_same_bits_within_the_bound(
        ty in prop::sample::select(&TYPES), rows in 1_usize..150, blocks_of in 1_usize..9, count in 0_usize..80, seed: u64,
    ) {
        let columns = columns_of(ty, blocks_of);
        let bytes = blocks(ty, rows, columns, seed);
        let packed = linear(ty, rows, columns, &bytes);
        let mut dense = dense(ty, rows, columns, &bytes);
        if ty.block_elements() > 32 {
            // What rounding the factors does is another test's subject.
            dense
                .outer_iter_mut()
                .enumerate()
                .for_each(|(r, mut row)| packed.row(r, row.as_slice_mut().unwrap()).unwrap());
        }
        let x = tokens(count, columns, seed);
        let expected = packed.clone().with_kernel(ByteKernel::available()[0]).apply(&x.view()).unwrap();
        for kernel in ByteKernel::available() {
            let y = packed.clone().with_kernel(kernel).apply(&x.view()).unwrap();
            prop_assert!(y.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{} {}", ty, kernel);
        }
        let (exact, bound) = exact(ty, &bytes, &dense, &x.view());
        for ((y, exact), bound) in expected.iter().zip(&exact).zip(&bound) {
            prop_assert!((f64::from(*y) - exact).abs() <= *bound, "{}: {} {} {}", ty, y, exact, bound);
        }
    }
}
