//! Criterion benchmarks of the kernels and of the delta coding, one thread: `cargo bench -p deltallm-benches`.
//!
//! For watching one kernel while it changes; ratios between kernels are the business of the program `ratios`.

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use deltallm::core::{DeltaEncoder, DeltaMatrix, HeadThresholds};
use deltallm::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, ElementType,
    HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, MemoryBudget, SkipMargin, ThresholdPolicy,
};
use deltallm_benches::{Layer, inputs::synthetic};

const LENGTHS: [usize; 2] = [512, 2048];
/// About 0.6 zeros on the synthetic keys.
const THETA: f32 = 0.34;

/// Makes an empty kernel.
type Make = Box<dyn Fn() -> Box<dyn AttentionKernel>>;

fn shape() -> AttentionShape {
    AttentionShape::new(9, 3, 64).unwrap()
}

fn kernels() -> [(&'static str, Make); 3] {
    let options =
        AttentionOptions::default().store(KvStore::F32).isa(Isa::from_env().unwrap()).parallel(false);
    let policy = ThresholdPolicy::Uniform(THETA);
    let config = HybridConfig::new(policy.clone()).skip_margin(SkipMargin::Fixed(3.0));
    let (dense, delta) = (options.clone(), options.clone());
    [
        ("dense-f32", Box::new(move || Box::new(DenseAttention::new(shape(), dense.clone()).unwrap()))),
        (
            "delta-f32",
            Box::new(move || {
                Box::new(DeltaAttention::new(shape(), policy.clone(), 0, delta.clone()).unwrap())
            }),
        ),
        (
            "hybrid-f32",
            Box::new(move || {
                Box::new(HybridAttention::new(shape(), config.clone().options(options.clone())).unwrap())
            }),
        ),
    ]
}

fn forward(kernel: &mut dyn AttentionKernel, layer: &Layer, tokens: std::ops::Range<usize>, out: &mut [f32]) {
    let view = HeadsViewMut::new(out, [tokens.len(), 9, 64]).unwrap();
    kernel.forward_heads(layer.q(tokens.clone()), layer.k(tokens.clone()), layer.v(tokens), view).unwrap();
    black_box(out);
}

fn prefill(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in LENGTHS {
        let layer = synthetic::layer(shape(), tokens);
        let mut out = vec![0.0; layer.q.len()];
        for (name, make) in kernels() {
            group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
                bencher.iter_batched_ref(
                    &make,
                    |kernel| forward(&mut **kernel, &layer, 0..tokens, &mut out),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

/// The last token again and again, `truncate` included.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    for tokens in LENGTHS {
        let layer = synthetic::layer(shape(), tokens);
        let mut out = vec![0.0; layer.q.len()];
        for (name, make) in kernels() {
            let mut kernel = make();
            forward(&mut *kernel, &layer, 0..tokens, &mut out);
            group.bench_function(BenchmarkId::new(name, tokens), |bencher| {
                bencher.iter(|| {
                    kernel.truncate(tokens - 1).unwrap();
                    forward(&mut *kernel, &layer, tokens - 1..tokens, &mut out[..9 * 64]);
                });
            });
        }
    }
    group.finish();
}

/// One kv head's keys: coded, stored as a delta matrix, and read back.
fn coding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coding");
    group.sample_size(20);
    let keys = synthetic::layer(AttentionShape::new(1, 1, 64).unwrap(), 2048).k;
    group.throughput(Throughput::Elements(2048));
    let thresholds = || HeadThresholds::from(vec![THETA; 64]);
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            let mut encoder = DeltaEncoder::new(thresholds(), ElementType::F32).unwrap();
            keys.chunks(64).map(|key| encoder.encode(key).unwrap()[0].count_ones()).sum::<u32>()
        });
    });
    let matrix = || {
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::new(thresholds(), ElementType::F32, &budget).unwrap();
        keys.chunks(64).for_each(|key| matrix.push(key).unwrap());
        matrix
    };
    group.bench_function("push", |bencher| bencher.iter(&matrix));
    let (matrix, mut rows) = (matrix(), Vec::new());
    group.bench_function("reconstruct", |bencher| {
        bencher.iter(|| {
            for block in 0..matrix.blocks() {
                matrix.reconstruct(block, &mut rows);
                black_box(&rows);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, prefill, decode, coding);
criterion_main!(benches);
