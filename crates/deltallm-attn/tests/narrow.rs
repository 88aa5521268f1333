//! What kernels answer after they have gone to a narrower store: within the bounds of `docs/method.md`, and nothing is lost.

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionShape, DeltaAttention, DenseAttention, ExactWindow,
    HybridAttention, HybridConfig, KernelWrapper, MemoryBudget, PaperRule, ThresholdPolicy,
    reference::Method,
};
use deltallm_core::{
    CoreError, DeltaMatrix, ElementType, KvStore,
    internal::{PagedRows, RowFormat},
};
use proptest::prelude::*;

mod common;

use common::{Inputs, kernels, options, worst};

/// Exact attention with these keys and values, all in f64: the outputs of the tokens from `first` on.
fn exact(inputs: &Inputs, k: &[f32], v: &[f32], first: usize) -> Vec<f64> {
    inputs.reference_with(&Method::dense(&inputs.shape), k, v).0.split_off(first * inputs.q_row())
}

/// The sum of `|q[j]|` of the largest query, which bounds how far an error of the keys moves a score.
fn largest_query(inputs: &Inputs) -> f64 {
    let sum = |q: &[f32]| q.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    inputs.q.chunks_exact(inputs.shape.head_dim()).map(sum).fold(0.0, f64::max)
}

fn shapes() -> impl Strategy<Value = AttentionShape> {
    (1_usize..=4, 1_usize..=2, prop_oneof![Just(64_usize), Just(80), 1_usize..20])
        .prop_map(|(group, kv_heads, d)| AttentionShape::new(group * kv_heads, kv_heads, d).unwrap())
}

/// Narrows a delta kernel after `before` tokens and compares what it answers for `after` more with the reference, given
/// exactly the keys and values that the cache then stands for.
#[track_caller]
fn assert_delta_attends_the_keys_it_holds(
    shape: AttentionShape,
    [before, after]: [usize; 2],
    seed: u64,
    theta: f32,
    times: usize,
) {
    let inputs = Inputs::new(shape, before + after, seed);
    let (d, row) = (shape.head_dim(), shape.kv_heads() * shape.head_dim());
    let mut kernel = DeltaAttention::new(shape, ThresholdPolicy::Uniform(theta), 0, options()).unwrap();
    inputs.call(&mut kernel, before).unwrap();
    let freed: Vec<usize> = (0..times).map(|_| kernel.narrow().unwrap()).collect();
    let got = inputs.call(&mut kernel, before + after).unwrap();

    let budget = MemoryBudget::unlimited();
    let (mut k, mut v) = (inputs.k.clone(), inputs.v.clone());
    for head in 0..shape.kv_heads() {
        let mut matrix = DeltaMatrix::new(vec![theta; d], ElementType::F32, &budget).unwrap();
        let mut values = PagedRows::new(d, ElementType::F32, 64, &budget);
        for t in 0..before + after {
            if t == before {
                let mut store = KvStore::F32;
                for freed in &freed {
                    match store {
                        KvStore::F32 => {
                            matrix = matrix.to_float(ElementType::F16, &budget).unwrap();
                            values = values.converted(ElementType::F16, &budget).unwrap();
                            store = KvStore::F16;
                        }
                        // Where everything escapes nothing would be gained, and nothing is done.
                        KvStore::F16 if *freed > 0 => {
                            matrix = matrix.to_steps(&budget).unwrap();
                            values = values.converted(RowFormat::Int4, &budget).unwrap();
                            store = KvStore::Compact;
                        }
                        _ => {}
                    }
                }
            }
            matrix.push(&inputs.k[t * row + head * d..][..d]).unwrap();
            values.push(&inputs.v[t * row + head * d..][..d]).unwrap();
        }
        let mut keys = Vec::new();
        for block in 0..matrix.blocks() {
            matrix.reconstruct(block, &mut keys);
            for (t, key) in (block * 64..).zip(keys.chunks_exact(d)) {
                k[t * row + head * d..][..d].copy_from_slice(key);
            }
        }
        for t in 0..before + after {
            v[t * row + head * d..][..d].copy_from_slice(values.read(t..t + 1, &mut keys));
        }
    }
    let worst = worst(&got, &exact(&inputs, &k, &v, before));
    assert!(worst <= 2e-5, "off by {worst:e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(48)))]

    #[test]
    fn narrowed_delta_is_attention_to_the_keys_it_then_holds(
        shape in shapes(), before in 65_usize..200, after in 1_usize..100, seed: u64, theta in 0.0_f32..0.5, times in 1_usize..4,
    ) {
        assert_delta_attends_the_keys_it_holds(shape, [before, after], seed, theta, times);
    }

    /// Against exact attention: if no score is off by more than `e`, no weight is off by more than a factor of
    /// `exp(2 e)`, and outputs of values of magnitude 1 by no more than `exp(2 e) - 1`.
    #[test]
    fn outputs_after_narrowing_stay_within_the_bound(
        shape in shapes(), before in 65_usize..200, after in 1_usize..100, seed: u64, theta in 0.0_f32..0.01,
        window in 1_usize..40, sinks in 0_usize..10, kind in 0..3,
    ) {
        let inputs = Inputs::new(shape, before + after, seed);
        let policy = ThresholdPolicy::Uniform(theta);
        let config = HybridConfig::new(policy.clone()).exact_window(ExactWindow::Sliding(window)).exact_sinks(sinks);
        let options = options();
        let mut kernel: Box<dyn AttentionKernel> = match kind {
            0 => Box::new(DenseAttention::new(shape, options.clone()).unwrap()),
            1 => Box::new(DeltaAttention::new(shape, policy, 0, options.clone()).unwrap()),
            _ => Box::new(HybridAttention::new(shape, config.clone().options(options.clone())).unwrap()),
        };
        inputs.call(&mut *kernel, before).unwrap();
        let held = kernel.footprint().total();
        let freed = kernel.narrow().unwrap();
        prop_assert_eq!(kernel.footprint().total(), held - freed);
        prop_assert_eq!(kernel.len(), before);
        let got = inputs.call(&mut *kernel, before + after).unwrap();

        let theta = if kind == 0 { 0.0 } else { f64::from(theta) };
        let largest_key = inputs.k.iter().fold(0.0, |m: f64, x| m.max(f64::from(x.abs())));
        let (key_error, value_error) = (theta + (largest_key + theta) / 2048.0, 1.0 / 2048.0);
        let score_error = f64::from(1.0 / (shape.head_dim() as f32).sqrt()) * largest_query(&inputs) * key_error;
        let bound = (2.0 * score_error).exp_m1() + value_error + 2e-5;
        let worst = worst(&got, &exact(&inputs, &inputs.k, &inputs.v, before));
        prop_assert!(worst <= bound, "off by {worst:e}, expected at most {bound:e}");
    }
}

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 16).unwrap()
}

/// A case that once failed.
#[test]
fn a_block_that_has_just_been_sealed_is_narrowed_twice() {
    let shape = AttentionShape::new(1, 1, 64).unwrap();
    assert_delta_attends_the_keys_it_holds(shape, [65, 1], 0, 0.17340645, 2);
}

#[test]
fn narrowing_ends_when_there_is_nothing_left_to_gain() {
    let inputs = Inputs::new(shape(), 300, 1);
    for (index, mut kernel) in kernels(shape(), &options(), 0.2).into_iter().enumerate() {
        inputs.call(&mut *kernel, 300).unwrap();
        let freed: Vec<usize> = (0..10).map(|_| kernel.narrow().unwrap()).collect();
        let helped = freed.iter().take_while(|bytes| **bytes > 0).count();
        assert_eq!(helped, 2, "kernel {index}: {freed:?}");
        assert!(freed[helped..].iter().all(|bytes| *bytes == 0));
    }
}

#[test]
fn a_head_that_would_grow_keeps_all_heads_as_they_are() {
    let mut inputs = Inputs::new(shape(), 200, 7);
    // The keys of the second head are so far apart that no code reaches them.
    inputs.k.chunks_exact_mut(16).skip(1).step_by(2).flatten().for_each(|x| *x *= 1e3);
    for index in [1, 2] {
        let budget = MemoryBudget::unlimited();
        let mut kernel = kernels(shape(), &options().budget(budget.clone()), 0.2).swap_remove(index);
        inputs.call(&mut *kernel, 200).unwrap();
        assert!(kernel.narrow().unwrap() > 0);
        let held = kernel.footprint();
        assert_eq!(kernel.narrow().unwrap(), 0, "kernel {index}");
        assert_eq!((kernel.footprint(), budget.used()), (held, held.total()), "kernel {index}");
    }
}

/// A kernel around another one, with nothing of its own.
struct Wrapped<K>(K);

impl<K: AttentionKernel> KernelWrapper for Wrapped<K> {
    type Inner = K;

    fn inner(&self) -> &K {
        &self.0
    }

    fn inner_mut(&mut self) -> &mut K {
        &mut self.0
    }
}

#[test]
fn a_wrapped_kernel_answers_like_the_one_inside() {
    let inputs = Inputs::new(shape(), 301, 6);
    // The paper's window, which depends on what `begin_prompt` says.
    let config = HybridConfig::from(PaperRule { theta: 0.3, ..PaperRule::default() });
    let kernel = || HybridAttention::new(shape(), config.clone().options(options())).unwrap();
    let (mut plain, mut borrowed) = (kernel(), kernel());
    let wrapped: [Box<dyn AttentionKernel + '_>; 3] =
        [Box::new(Wrapped(kernel())), Box::new(Box::new(kernel())), Box::new(&mut borrowed)];
    let steps = |kernel: &mut dyn AttentionKernel| {
        kernel.begin_prompt(300);
        let first = inputs.call(kernel, 200).unwrap();
        kernel.begin_step();
        let outputs = [first, inputs.call(kernel, 300).unwrap()];
        let open = kernel.footprint();
        kernel.commit_step();
        // A window is let go of when its step stands.
        assert!(kernel.footprint().window < open.window);
        let grows = [1, 100].map(|tokens| kernel.growth(tokens).unwrap());
        let freed = [kernel.narrow().unwrap(), kernel.narrow().unwrap()];
        kernel.truncate(299).unwrap();
        let held = (kernel.len(), kernel.is_empty(), kernel.footprint(), kernel.stats());
        (outputs, grows, freed, held, inputs.call(kernel, 301).unwrap())
    };
    let expected = steps(&mut plain);
    assert!(expected.1[1] > 0 && expected.2[0] > 0);
    for mut kernel in wrapped {
        assert!(steps(&mut *kernel) == expected);
    }
}

#[test]
fn a_cache_that_cannot_be_narrowed_stays_as_it_is() {
    for index in 0..3 {
        let mut inputs = Inputs::new(shape(), 200, 3);
        // In the last head, which is looked at last.
        *inputs.v.last_mut().unwrap() = 1e6;
        let mut kernel = kernels(shape(), &options(), 0.2).into_iter().nth(index).unwrap();
        let mut free = kernels(shape(), &options(), 0.2).into_iter().nth(index).unwrap();
        for kernel in [&mut kernel, &mut free] {
            inputs.call(&mut **kernel, 199).unwrap();
            inputs.call(&mut **kernel, 200).unwrap();
        }
        let error = kernel.narrow().unwrap_err();
        assert!(matches!(error, AttentionError::Core(CoreError::NotStorable { channel: 15, .. })), "{error}");
        assert_eq!(kernel.footprint(), free.footprint());
        let again = Inputs::new(shape(), 201, 3);
        assert_eq!(again.call(&mut *kernel, 201), again.call(&mut *free, 201));
    }
}

#[test]
fn a_token_never_fails_when_its_growth_is_available() {
    let inputs = Inputs::new(shape(), 500, 4);
    for index in 0..3 {
        for limit in [40_000, 60_000, 90_000] {
            let budget = MemoryBudget::new(limit);
            let options = options().budget(budget.clone());
            let mut kernel = kernels(shape(), &options, 0.2).into_iter().nth(index).unwrap();
            let mut tokens = 0;
            while tokens < 500 {
                let (held, growth) = (budget.used(), kernel.growth(1).unwrap());
                let fits = growth <= budget.available();
                let result = inputs.call(&mut *kernel, tokens + 1);
                assert_eq!(result.is_ok(), fits, "kernel {index}, token {tokens}");
                if !fits {
                    break;
                }
                assert!(budget.used() <= held + growth);
                tokens += 1;
            }
            assert!((64..500).contains(&tokens), "kernel {index}, {limit} bytes: {tokens} tokens");
        }
    }
}

#[test]
fn growth_is_that_of_the_window_which_the_call_enters() {
    let inputs = Inputs::new(shape(), 400, 4);
    for (exact_prompt, calls) in [(200, [150, 230, 231]), (0, [90, 91, 300]), (64, [60, 62, 260])] {
        let budget = MemoryBudget::new(1 << 30);
        let options = options().store(KvStore::Compact).budget(budget.clone());
        // Thresholds of zero: coding takes more than what it lets go.
        let config =
            HybridConfig::new(ThresholdPolicy::Uniform(0.0)).codes_from(0).exact_prompt(exact_prompt);
        let mut kernel = HybridAttention::new(shape(), config.options(options)).unwrap();
        for end in calls {
            kernel.begin_prompt(end - kernel.len());
            let (held, growth) = (budget.used(), kernel.growth(end - kernel.len()).unwrap());
            inputs.call(&mut kernel, end).unwrap();
            assert!(budget.used() <= held + growth, "{end}: {} after {held} + {growth}", budget.used());
        }
    }
}
