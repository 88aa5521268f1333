//! Criterion benchmarks of the three kernels, one thread: `cargo bench -p deltallm-benches`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use deltallm::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, HeadsViewMut,
    HybridAttention, HybridConfig, ThresholdPolicy,
};
use deltallm_benches::Inputs;

/// Makes an empty kernel.
type Make<'a> = Box<dyn Fn() -> Box<dyn AttentionKernel> + 'a>;

fn prefill(criterion: &mut Criterion) {
    let shape = AttentionShape::new(9, 3, 64).unwrap();
    let options = AttentionOptions { parallel: false, ..AttentionOptions::new(shape).unwrap() };
    let policy = ThresholdPolicy::Uniform(0.6);
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for tokens in [256, 1024] {
        let inputs = Inputs::synthetic(shape, tokens);
        let kernels: [(&str, Make); 3] = [
            ("dense-f32", Box::new(|| Box::new(DenseAttention::new(&options).unwrap()))),
            ("delta-f32", Box::new(|| Box::new(DeltaAttention::new(&options, policy.clone(), 0).unwrap()))),
            (
                "hybrid-f32",
                Box::new(|| {
                    Box::new(HybridAttention::new(&options, &HybridConfig::new(policy.clone())).unwrap())
                }),
            ),
        ];
        let mut out = vec![0.0; inputs.q.len()];
        for (name, kernel) in &kernels {
            group.bench_function(BenchmarkId::new(*name, tokens), |bencher| {
                bencher.iter(|| {
                    let out = HeadsViewMut::new(&mut out, [tokens, 9, 64]).unwrap();
                    kernel().forward_heads(inputs.q(0), inputs.k(0), inputs.v(0), out).unwrap();
                    black_box(());
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
