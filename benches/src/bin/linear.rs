//! Times the products of packed weights against those of 16- and 32-bit floats, interleaved in one process.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use deltallm::Isa;
use deltallm::models::quant::TensorType;
use deltallm::models::{ByteKernel, HalfLinear, Matrix, QuantisedLinear, TernaryError, TernaryLinear};
use deltallm_benches::{machine, timing::Summary, timing::rotated};
use deltallm_cli::{main_with, print_json};
use deltallm_simd::{dispatch, fearless_simd::prelude::*};
use half::bf16;
use ndarray::Array2;
use rayon::prelude::*;
use serde::Serialize;

/// The layers of BitNet b1.58 2B4T that most weights are in: `[out, in]`.
const TERNARY_SHAPES: [[usize; 2]; 2] = [[6912, 2560], [2560, 6912]];
/// Those of SmolLM2-135M.
const QUANTISED_SHAPES: [[usize; 2]; 2] = [[1536, 576], [576, 1536]];

/// Products of packed matrices with one token, from beyond the caches, and with many.
///
/// One token: every matrix is there so often that nothing of it is in a cache when its turn comes again; `read` is a
/// plain loop over as much memory. The ratio is the time of bf16 over that of the variant. Many tokens: the ratio is the
/// time of f32 (the crate gemm, at the best level it finds) over that of the variant. All kernels of this machine take part;
/// bf16 is at the level that DELTALLM_SIMD names.
#[derive(Debug, clap::Parser)]
#[command(name = "linear", version)]
struct Args {
    /// Weights: ternary, in BitNet's shapes, and types of GGUF, in those of SmolLM2-135M
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "ternary", value_parser = parse_weights)]
    weights: Vec<Weights>,
    /// Rounds that count; their median is the result
    #[arg(long, value_name = "R", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: u16,
    /// Memory of every variant for one token, in millions of bytes
    #[arg(long, value_name = "MB", default_value_t = 540, value_parser = clap::value_parser!(u32).range(1..))]
    megabytes: u32,
    /// Tokens where there are many
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Print the results as one JSON object, the last line of stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
enum Weights {
    Ternary,
    Quantised(TensorType),
}

fn parse_weights(name: &str) -> Result<Weights, String> {
    let mut packed = TensorType::ALL.into_iter().filter(|ty| QuantisedLinear::supports(*ty));
    match packed.find(|ty| ty.to_string() == name) {
        Some(ty) => Ok(Weights::Quantised(ty)),
        None if name == "ternary" => Ok(Weights::Ternary),
        None => Err("expected ternary, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K".into()),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    cpu: String,
    date: String,
    level: String,
    threads: usize,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    weights: String,
    /// Output channels.
    rows: usize,
    /// Input channels.
    columns: usize,
    tokens: usize,
    variant: String,
    /// Of one product.
    median_ms: f64,
    min_ms: f64,
    /// Time of bf16 (one token) or f32 (many) over the time of this variant.
    ratio: f64,
    /// Of the weights, where there is one token.
    gigabytes_per_second: Option<f64>,
    /// The same over that of `read`.
    bandwidth_share: Option<f64>,
    /// Multiply-adds.
    billions_per_second: f64,
}

/// Something that is timed: `run` does `products` products and touches `bytes` of weights.
struct Subject<'a> {
    name: String,
    products: usize,
    bytes: usize,
    run: Box<dyn Fn() + 'a>,
}

fn main() -> ExitCode {
    main_with(run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let (threads, isa) = (usize::from(args.threads), Isa::from_env()?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let (cpu, date) = (machine::cpu(), machine::date());
    println!("{cpu}; {date}; level {isa}, {threads} threads");
    println!(
        "{:<8} {:>12} {:>6}  {:<12} {:>9} {:>7} {:>7} {:>7} {:>9}",
        "weights", "shape", "tokens", "variant", "ms", "ratio", "GB/s", "share", "G/s"
    );
    let kernels: Vec<_> =
        ByteKernel::available().into_iter().filter(|kernel| kernel.name() != "scalar").collect();
    let mut report = Report { cpu, date, level: isa.to_string(), threads, rows: Vec::new() };
    let (rounds, tokens) = (usize::from(args.repetitions), args.tokens as usize);
    let mut matrices = Vec::new();
    for weights in args.weights {
        weights.matrices(&mut matrices)?;
    }
    for (name, matrix) in matrices {
        let one = one_token(isa, &name, &matrix, &kernels, args.megabytes as usize * 1_000_000, rounds);
        for row in one.into_iter().chain(many_tokens(&name, &matrix, &kernels, tokens, rounds)) {
            print(&row);
            report.rows.push(row);
        }
    }
    if args.json {
        print_json(&report)?;
    }
    Ok(())
}

impl Weights {
    /// Appends a matrix of every shape that has whole blocks.
    fn matrices(self, out: &mut Vec<(String, Matrix)>) -> anyhow::Result<()> {
        let ty = match self {
            Self::Quantised(ty) => ty,
            Self::Ternary => {
                for [rows, columns] in TERNARY_SHAPES {
                    out.push(("ternary".into(), ternary(rows, columns)?));
                }
                return Ok(());
            }
        };
        for [rows, columns] in QUANTISED_SHAPES {
            if columns % ty.block_elements() == 0 {
                // Scales and minima that are small, whatever the type: 0x1c1c as a 16-bit float.
                let bytes = vec![0x1c; columns / ty.block_elements() * ty.block_bytes()];
                let weight = QuantisedLinear::from_rows(ty, rows, columns, |_| &bytes)?;
                out.push((ty.to_string(), Matrix::Quantised(weight)));
            }
        }
        Ok(())
    }
}

/// A matrix that looks random.
fn ternary(rows: usize, columns: usize) -> anyhow::Result<Matrix> {
    let weight = TernaryLinear::from_rows(rows, columns, 0.5, |row, out| {
        out.iter_mut().enumerate().for_each(|(column, out)| *out = weight(row, column));
        Ok::<_, TernaryError>(())
    })?;
    Ok(Matrix::Ternary(weight))
}

/// A copy that multiplies with these instructions.
fn with_kernel(matrix: &Matrix, kernel: ByteKernel) -> Matrix {
    match matrix {
        Matrix::Ternary(weight) => Matrix::Ternary(weight.clone().with_kernel(kernel)),
        Matrix::Quantised(weight) => Matrix::Quantised(weight.clone().with_kernel(kernel)),
        other => other.clone(),
    }
}

/// The weights as numbers.
fn unpacked(matrix: &Matrix) -> Array2<f32> {
    let mut weights = Array2::zeros(matrix.dim());
    weights.outer_iter_mut().enumerate().for_each(|(row, mut out)| out.assign(&matrix.row(row)));
    weights
}

fn weight(row: usize, column: usize) -> i8 {
    let bits = ((row * 0x9e37 + column) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((bits >> 40) % 3) as i8 - 1
}

fn activations(tokens: usize, columns: usize) -> Array2<f32> {
    Array2::from_shape_fn((tokens, columns), |(token, column)| ((token * 31 + column * 7) as f32).sin())
}

fn one_token(
    isa: Isa,
    name: &str,
    matrix: &Matrix,
    kernels: &[ByteKernel],
    bytes: usize,
    rounds: usize,
) -> Vec<Row> {
    let (rows, columns) = matrix.dim();
    let x = activations(1, columns);
    let copies = bytes.div_ceil(matrix.bytes());
    let halves = Matrix::Bf16(HalfLinear::new(unpacked(matrix).mapv(bf16::from_f32)).with_isa(isa));
    let halves = vec![halves; bytes.div_ceil(rows * columns * 2)];
    let plain = vec![1_u32; bytes / 4];
    let mut subjects = vec![
        Subject {
            name: "bf16".into(),
            products: halves.len(),
            bytes: halves.len() * rows * columns * 2,
            run: Box::new(|| halves.iter().for_each(|halves| drop(black_box(halves.apply(&x.view()))))),
        },
        Subject { name: "read".into(), products: 1, bytes: plain.len() * 4, run: Box::new(|| read(&plain)) },
    ];
    for kernel in kernels {
        let copies: Vec<_> = (0..copies).map(|_| with_kernel(matrix, *kernel)).collect();
        let (products, bytes, x) = (copies.len(), copies.len() * matrix.bytes(), x.view());
        let run = move || copies.iter().for_each(|copy| drop(black_box(copy.apply(&x))));
        subjects.push(Subject { name: kernel.to_string(), products, bytes, run: Box::new(run) });
    }
    let times = measure(&subjects, rounds);
    let bandwidth = |i: usize| subjects[i].bytes as f64 / times[i].median;
    let product = |i: usize| times[i].median / subjects[i].products as f64;
    let row = |i: usize| Row {
        weights: name.to_owned(),
        rows,
        columns,
        tokens: 1,
        variant: subjects[i].name.clone(),
        median_ms: product(i) * 1e3,
        min_ms: times[i].min / subjects[i].products as f64 * 1e3,
        ratio: product(0) / product(i),
        gigabytes_per_second: Some(bandwidth(i) / 1e9),
        bandwidth_share: Some(bandwidth(i) / bandwidth(1)),
        billions_per_second: (rows * columns) as f64 / product(i) / 1e9,
    };
    (0..subjects.len()).map(row).filter(|row| row.variant != "read").collect()
}

fn many_tokens(
    name: &str,
    matrix: &Matrix,
    kernels: &[ByteKernel],
    tokens: usize,
    rounds: usize,
) -> Vec<Row> {
    let (rows, columns) = matrix.dim();
    let x = activations(tokens, columns);
    let wide = Matrix::F32(unpacked(matrix));
    let run = Box::new(|| drop(black_box(wide.apply(&x.view()))));
    let mut subjects = vec![Subject { name: "f32".into(), products: 1, bytes: 0, run }];
    for kernel in kernels {
        let (matrix, x) = (with_kernel(matrix, *kernel), x.view());
        let run = Box::new(move || drop(black_box(matrix.apply(&x))));
        subjects.push(Subject { name: kernel.to_string(), products: 1, bytes: 0, run });
    }
    let times = measure(&subjects, rounds);
    let rows_of = subjects.iter().zip(&times).map(|(subject, time)| Row {
        weights: name.to_owned(),
        rows,
        columns,
        tokens,
        variant: subject.name.clone(),
        median_ms: time.median * 1e3,
        min_ms: time.min * 1e3,
        ratio: times[0].median / time.median,
        gigabytes_per_second: None,
        bandwidth_share: None,
        billions_per_second: (rows * columns * tokens) as f64 / time.median / 1e9,
    });
    rows_of.collect()
}

/// Seconds of every subject, after a round that does not count.
fn measure(subjects: &[Subject], rounds: usize) -> Vec<Summary> {
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..=rounds {
        for i in rotated(subjects.len(), round) {
            let start = Instant::now();
            (subjects[i].run)();
            if round > 0 {
                times[i].push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.iter().map(|times| Summary::of(times)).collect()
}

/// Reads memory with all threads.
fn read(memory: &[u32]) {
    let share = memory.len().div_ceil(rayon::current_num_threads());
    memory.par_chunks(share).for_each(|memory| {
        black_box(dispatch!(Isa::best(), simd => sum(simd, memory)));
    });
}

#[inline(always)]
fn sum<S: Simd>(simd: S, memory: &[u32]) -> u32 {
    let mut sums = [S::u32s::splat(simd, 0); 4];
    for chunk in memory.chunks_exact(4 * S::u32s::LEN) {
        for (sum, numbers) in sums.iter_mut().zip(chunk.chunks_exact(S::u32s::LEN)) {
            *sum += S::u32s::from_slice(simd, numbers);
        }
    }
    let [a, b, c, d] = sums;
    (a + b + c + d).as_slice().iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}

fn print(row: &Row) {
    let number = |number: Option<f64>| number.map_or("-".into(), |number| format!("{number:.2}"));
    println!(
        "{:<8} {:>12} {:>6}  {:<12} {:>9.3} {:>7.2} {:>7} {:>7} {:>9.1}",
        row.weights,
        format!("{}x{}", row.rows, row.columns),
        row.tokens,
        row.variant,
        row.median_ms,
        row.ratio,
        number(row.gigabytes_per_second),
        number(row.bandwidth_share),
        row.billions_per_second
    );
}
