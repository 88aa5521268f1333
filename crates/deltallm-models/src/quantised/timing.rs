//! Rates of the kernels at the shapes of a small model.
//!
//! `cargo test --release -p deltallm-models --lib quantised::timing -- --ignored --nocapture`

use std::hint::black_box;
use std::time::Instant;

use deltallm_simd::dot::ByteKernel;
use ndarray::Array2;

use super::QuantisedLinear;
use crate::kernels::matmul_transposed;
use crate::quant::{TensorType, dequantize};

const ROUNDS: usize = 15;

/// More than caches hold.
const BEYOND_CACHES: usize = 256 << 20;

fn matrix(ty: TensorType, rows: usize, columns: usize) -> (QuantisedLinear, Array2<f32>) {
    let row_bytes = columns / ty.block_elements() * ty.block_bytes();
    // Scales and minima that are small, whatever the type: 0x1c1c as a 16-bit float.
    let bytes = vec![0x1c; rows * row_bytes];
    let packed =
        QuantisedLinear::from_rows(ty, rows, columns, |row| &bytes[row * row_bytes..][..row_bytes]).unwrap();
    let mut dense = vec![0.0; rows * columns];
    dequantize(ty, &bytes, &mut dense).unwrap();
    (packed, Array2::from_shape_vec((rows, columns), dense).unwrap())
}

/// The median and the least of times in seconds.
fn summary(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

#[test]
#[ignore = "a measurement"]
fn rates_of_all_kernels() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let shapes = [
        (TensorType::Q4_1, 576, 576),
        (TensorType::Q4_1, 1536, 576),
        (TensorType::Q4_1, 576, 1536),
        (TensorType::Q4_0, 1536, 576),
        (TensorType::Q8_0, 1536, 576),
        (TensorType::Q6_K, 1536, 768),
    ];
    pool.install(|| {
        for (ty, rows, columns) in shapes {
            many_tokens(ty, rows, columns);
        }
        one_token(TensorType::Q4_1, 1536, 576);
        one_token(TensorType::Q4_1, 576, 1536);
        one_token(TensorType::Q8_0, 49152, 576);
    });
}

fn many_tokens(ty: TensorType, rows: usize, columns: usize) {
    let (packed, dense) = matrix(ty, rows, columns);
    let kernels: Vec<_> = ByteKernel::available()[1..].to_vec();
    let x = Array2::from_shape_fn((512, columns), |(i, j)| ((i * 31 + j * 17) as f32).sin());
    let mut times = vec![Vec::new(); kernels.len() + 1];
    for _ in 0..ROUNDS {
        for (kernel, times) in kernels.iter().zip(&mut times) {
            let packed = packed.clone().with_kernel(*kernel);
            let start = Instant::now();
            black_box(packed.apply(&x.view()));
            times.push(start.elapsed().as_secs_f64());
        }
        let start = Instant::now();
        let mut y = Array2::zeros((512, rows));
        matmul_transposed(&x.view(), &dense.view(), black_box(&mut y).view_mut());
        times[kernels.len()].push(start.elapsed().as_secs_f64());
    }
    let names = kernels.iter().map(|kernel| kernel.name()).chain(["f32 gemm"]);
    for (name, times) in names.zip(times) {
        let (median, best) = summary(times);
        let work = (512 * rows * columns) as f64 / 1e9;
        println!(
            "{ty} {rows} x {columns}, 512 tokens, {name}: {:.0} GMAC/s (best {:.0})",
            work / median,
            work / best
        );
    }
}

fn one_token(ty: TensorType, rows: usize, columns: usize) {
    let (packed, _) = matrix(ty, rows, columns);
    let copies = BEYOND_CACHES.div_ceil(packed.bytes());
    let mut matrices: Vec<_> = (0..copies).map(|_| packed.clone()).collect();
    let x = Array2::from_shape_fn((1, columns), |(_, j)| (j as f32).sin());
    let bytes = (copies * packed.bytes()) as f64 / 1e9;
    for kernel in &ByteKernel::available()[1..] {
        matrices = matrices.into_iter().map(|matrix| matrix.with_kernel(*kernel)).collect();
        let times = (0..5).map(|_| {
            let start = Instant::now();
            for matrix in &matrices {
                black_box(matrix.apply(&x.view()));
            }
            start.elapsed().as_secs_f64()
        });
        let (median, best) = summary(times.collect());
        println!(
            "{ty} {rows} x {columns}, 1 token, {kernel}: {:.1} GB/s (best {:.1})",
            bytes / median,
            bytes / best
        );
    }
    // What memory allows: the same bytes, added up.
    let lines = vec![1_u64; BEYOND_CACHES / 8];
    let times = (0..5).map(|_| {
        let start = Instant::now();
        black_box(lines.iter().fold(0_u64, |sum, line| sum.wrapping_add(*line)));
        start.elapsed().as_secs_f64()
    });
    let (median, best) = summary(times.collect());
    let bytes = BEYOND_CACHES as f64 / 1e9;
    println!("read loop: {:.1} GB/s (best {:.1})", bytes / median, bytes / best);
}
