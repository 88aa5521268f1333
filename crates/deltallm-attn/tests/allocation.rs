//! The accounting against the allocator: what a kernel says it holds is what it has allocated, to the byte, and a step of
//! decoding allocates nothing else.
//!
//! One test in a program of its own, because the allocator counts for the whole process.

use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention, HeadsView,
    HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, MemoryBudget, ThresholdPolicy,
};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// Two mask words a token, the second one not full; and small heads, whose codes take more than they do.
const HEAD_DIMS: [usize; 21] = [70, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
const MOST_TOKENS: usize = 700;

/// What is done to a kernel.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Calls of this many tokens each, up to this length.
    Append {
        each: usize,
        len: usize,
    },
    Truncate(usize),
    Narrow,
}

/// For small heads.
const FEW_STEPS: [Step; 7] = [
    Step::Append { each: 130, len: 150 },
    Step::Narrow,
    Step::Append { each: 40, len: 200 },
    Step::Narrow,
    Step::Append { each: 1, len: 270 },
    Step::Narrow,
    Step::Truncate(100),
];

const STEPS: [Step; 15] = [
    Step::Append { each: 1, len: 3 },
    Step::Append { each: 130, len: 263 },
    Step::Append { each: 1, len: 330 },
    Step::Truncate(256),
    Step::Truncate(201),
    Step::Append { each: 100, len: 401 },
    Step::Append { each: 1, len: 470 },
    Step::Truncate(190),
    Step::Narrow,
    Step::Append { each: 77, len: 421 },
    Step::Narrow,
    Step::Append { each: 1, len: 500 },
    Step::Append { each: 70, len: 600 },
    Step::Truncate(0),
    Step::Append { each: 1, len: 70 },
];

fn kernels(shape: AttentionShape, options: &AttentionOptions) -> Vec<Box<dyn AttentionKernel>> {
    let policy = ThresholdPolicy::Uniform(0.3);
    let config = HybridConfig::new(policy.clone()).exact_sinks(20);
    let dense = DenseAttention::new(shape, options.clone())
        .map(|kernel| Box::new(kernel) as Box<dyn AttentionKernel>);
    let delta = DeltaAttention::new(shape, policy, 0, options.clone()).map(|kernel| Box::new(kernel) as _);
    let hybrid =
        HybridAttention::new(shape, config.options(options.clone())).map(|kernel| Box::new(kernel) as _);
    // Not every kernel takes every store.
    [dense, delta, hybrid].into_iter().filter_map(Result::ok).collect()
}

/// The first time a thread gets what it keeps for its next calls; the second time it has that.
fn twice_every_store() -> impl Iterator<Item = (bool, KvStore)> {
    [false, true].into_iter().flat_map(move |again| KvStore::ALL.map(|store| (again, store)))
}

/// Calls `kernel` with the next `tokens` tokens.
fn append(
    kernel: &mut dyn AttentionKernel,
    tokens: usize,
    head_dim: usize,
    [q, k]: [&[f32]; 2],
    out: &mut [f32],
) {
    let (first, q_shape, k_shape) = (kernel.len(), [tokens, HEADS, head_dim], [tokens, KV_HEADS, head_dim]);
    let q = HeadsView::new(&q[first * HEADS * head_dim..], q_shape).unwrap();
    let k = HeadsView::new(&k[first * KV_HEADS * head_dim..], k_shape).unwrap();
    kernel.forward_heads(q, k, k, HeadsViewMut::new(out, q_shape).unwrap()).unwrap();
}

/// Smooth rows that repeat slowly, so that some deltas are zero and some are not.
fn rows(heads: usize, head_dim: usize) -> Vec<f32> {
    let row =
        |t: usize| (0..heads * head_dim).map(move |j| ((t * (j % 7 + 1)) as f32 * 0.05 + j as f32).sin());
    (0..MOST_TOKENS).flat_map(row).collect()
}

#[test]
fn what_a_kernel_accounts_for_is_what_it_has_allocated() {
    let _profiler = dhat::Profiler::builder().testing().build();
    steps_of_decoding_allocate_nothing_but_their_cache();
    for head_dim in HEAD_DIMS {
        what_heads_of_a_size_account_for(head_dim, if head_dim > 20 { &STEPS } else { &FEW_STEPS });
    }
}

fn what_heads_of_a_size_account_for(head_dim: usize, steps: &[Step]) {
    let allocated = || dhat::HeapStats::get().curr_bytes;
    let (queries, keys) = (rows(HEADS, head_dim), rows(KV_HEADS, head_dim));
    let mut out = vec![0.0; MOST_TOKENS * HEADS * head_dim];
    let shape = AttentionShape::new(HEADS, KV_HEADS, head_dim).unwrap();
    for (again, store) in twice_every_store() {
        let budget = MemoryBudget::unlimited();
        let options = AttentionOptions::default()
            .store(store)
            .budget(budget.clone())
            .isa(Isa::from_env().unwrap())
            .parallel(false);
        for (index, mut kernel) in kernels(shape, &options).into_iter().enumerate() {
            let mut empty = allocated();
            let mut narrowed = 0;
            let becomes_compact = if store == KvStore::F32 { 2 } else { 1 };
            for step in steps {
                match *step {
                    Step::Append { each, len } => {
                        while kernel.len() < len {
                            let tokens = each.min(len - kernel.len());
                            let (held, growth) = (budget.used(), kernel.growth(tokens).unwrap());
                            append(&mut *kernel, tokens, head_dim, [&queries, &keys], &mut out);
                            assert!(budget.used() <= held + growth);
                            assert!(!again || allocated() - empty == kernel.footprint().total());
                        }
                    }
                    Step::Truncate(len) => kernel.truncate(len).unwrap(),
                    Step::Narrow => {
                        let held = budget.used();
                        let freed = kernel.narrow().unwrap();
                        assert_eq!(held - freed, budget.used());
                        narrowed += usize::from(freed > 0);
                        if index > 0 && narrowed == becomes_compact {
                            // The encoders' working memory, which does not grow with the cache: three rows of steps, three
                            // of codes and a mask of escapes.
                            empty += KV_HEADS * (15 * head_dim + head_dim.div_ceil(64) * size_of::<u64>());
                            // Beside a window, a key and a value on their way from it.
                            empty += if index == 2 { KV_HEADS * 8 * head_dim } else { 0 };
                            narrowed = usize::MAX / 2;
                        }
                    }
                }
                let accounted = (kernel.footprint().total(), budget.used());
                let real = allocated() - empty;
                let equal = accounted == (real, real);
                assert!(
                    equal || !again,
                    "{head_dim}, kernel {index}, {store}, after {step:?}: {accounted:?}, {real}"
                );
            }
        }
        assert_eq!(budget.used(), 0);
    }
}

/// For whole vectors of channels: others are converted block by block.
fn steps_of_decoding_allocate_nothing_but_their_cache() {
    const HEAD_DIM: usize = 64;
    let (queries, keys) = (rows(HEADS, HEAD_DIM), rows(KV_HEADS, HEAD_DIM));
    let mut out = vec![0.0; 200 * HEADS * HEAD_DIM];
    let shape = AttentionShape::new(HEADS, KV_HEADS, HEAD_DIM).unwrap();
    let (mut quiet, mut steps) = (0, 0);
    for (again, store) in twice_every_store() {
        let options = AttentionOptions::default().store(store).isa(Isa::from_env().unwrap()).parallel(false);
        for (index, mut kernel) in kernels(shape, &options).into_iter().enumerate() {
            append(&mut *kernel, 200, HEAD_DIM, [&queries, &keys], &mut out);
            while kernel.len() < MOST_TOKENS {
                let exact = kernel.footprint().keys == 0;
                let (growth, before) = (kernel.growth(1).unwrap(), dhat::HeapStats::get().total_blocks);
                append(&mut *kernel, 1, HEAD_DIM, [&queries, &keys], &mut out);
                let blocks = dhat::HeapStats::get().total_blocks - before;
                // Once, a cache goes from f16 to codes.
                let expected = blocks == 0 || growth > 0 || exact && kernel.footprint().keys > 0;
                assert!(expected || !again, "kernel {index}, {store}, {}: {blocks}", kernel.len());
                quiet += usize::from(again && blocks == 0);
                steps += usize::from(again);
            }
        }
    }
    assert!(quiet > steps * 9 / 10, "{quiet} of {steps}");
}
