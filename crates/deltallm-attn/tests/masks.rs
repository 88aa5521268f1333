//! Which keys a query attends to at all, and what of the rest is dropped.

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, HybridAttention, HybridConfig, Isa, KernelContext, KernelSpec, KvStore, Mask, MemoryBudget,
    SkipMargin, ThresholdPolicy, reference::Method,
};
use deltallm_core::{CachePlan, KeyPlan};
use proptest::prelude::*;

mod common;

use common::{Inputs, isa, kernels, options, worst};

const TOLERANCE: f64 = 2e-5;

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    let worst = worst(got, expected);
    assert!(worst <= TOLERANCE, "{what}: off by {worst:e}");
}

fn masks() -> impl Strategy<Value = Mask> {
    prop_oneof![
        (1_usize..250).prop_map(Mask::SlidingWindow),
        (1_usize..250).prop_map(Mask::Chunked),
        Just(Mask::Bidirectional),
    ]
}

/// Calls of these lengths, up to `tokens` tokens. A query that sees later tokens needs them in its own call.
fn calls(mask: Mask, tokens: usize, lengths: &[usize]) -> Vec<usize> {
    if mask == Mask::Bidirectional {
        return vec![tokens];
    }
    let mut ends = Vec::new();
    for length in lengths.iter().cycle() {
        let end = tokens.min(ends.last().unwrap_or(&0) + length);
        ends.push(end);
        if end == tokens {
            break;
        }
    }
    ends
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(48)))]

    #[test]
    fn every_mask_equals_the_reference_in_calls_of_any_length(
        group in 1_usize..5, mask in masks(), tokens in 1_usize..400, seed: u64, theta in 0.0_f32..1.0,
        store in prop::sample::select(&KvStore::ALL[..]), window in 1_usize..100, sinks in 0_usize..20,
        lengths in prop::collection::vec(prop_oneof![1_usize..4, 1_usize..200], 1..6), codes_from in prop_oneof![Just(0), Just(100)],
    ) {
        let shape = AttentionShape::new(group, 1, 32).unwrap();
        let inputs = Inputs::new(shape, tokens, seed);
        let ends = calls(mask, tokens, &lengths);
        let policy = ThresholdPolicy::Uniform(theta);
        let thresholds = Some(vec![vec![theta; 32]]);
        let dense = Method { mask, store: store.dense(), ..Method::dense(&shape) };
        let delta = Method { mask, store, thresholds: thresholds.clone(), ..Method::dense(&shape) };
        // A cache that never holds codes, because the mask reaches back no further than one without, attends exactly.
        let first_codes = if store.is_quantised() { window.max(codes_from) } else { 0 };
        let uncoded = mask.most_keys().is_some_and(|most| most <= first_codes);
        let hybrid = Method {
            exact_window: Some(ExactWindow::Sliding(window)), exact_sinks: sinks,
            exact_until: if uncoded { usize::MAX } else if store.is_quantised() { codes_from } else { 0 }, ..delta.clone()
        };
        let [dense, delta, hybrid] = [dense, delta, hybrid].map(|method| inputs.reference(&method).0);
        for isa in Isa::available() {
            let options = AttentionOptions::default().isa(isa).store(store).mask(mask);
            let mut kernel = DenseAttention::new(shape, options.clone().store(store.dense())).unwrap();
            assert_close(&inputs.run(&mut kernel, &ends), &dense, &format!("dense, {isa}"));
            if store.is_delta() {
                let mut kernel = DeltaAttention::new(shape, policy.clone(), 0, options.clone()).unwrap();
                assert_close(&inputs.run(&mut kernel, &ends), &delta, &format!("delta, {isa}"));
            }
            let config = HybridConfig::new(policy.clone()).exact_window(ExactWindow::Sliding(window)).exact_sinks(sinks);
            let config = config.codes_from(codes_from).options(options);
            let mut kernel = HybridAttention::new(shape, config).unwrap();
            assert_close(&inputs.run(&mut kernel, &ends), &hybrid, &format!("hybrid, {isa}"));
        }
    }

    #[test]
    fn skipping_under_a_mask_equals_the_reference(
        group in 1_usize..5, mask in masks(), tokens in 1_usize..300, seed: u64, margin in 0.5_f32..4.0, one_by_one: bool,
    ) {
        let shape = AttentionShape::new(group, 1, 32).unwrap();
        let inputs = Inputs::new(shape, tokens, seed);
        let one_by_one = one_by_one && mask != Mask::Bidirectional;
        let method = |margin| Method {
            mask, thresholds: Some(vec![vec![0.4; 32]]), exact_window: Some(ExactWindow::Sliding(20)), exact_sinks: 2,
            skip_margin: Some(SkipMargin::Fixed(margin)), ..Method::dense(&shape)
        }.in_calls_of(if one_by_one { 1 } else { tokens }, &shape);
        let (expected, skipped) = inputs.reference(&method(margin));
        // A score within rounding of the margin may fall on either side: such inputs prove nothing.
        prop_assume!([-1e-4, 1e-4].iter().all(|by| inputs.reference(&method(margin + by)).1 == skipped));
        let ends = if one_by_one { (1..=tokens).collect() } else { vec![tokens] };
        for isa in Isa::available() {
            let config = HybridConfig::new(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(20)).exact_sinks(2);
            let config = config.skip_margin(SkipMargin::Fixed(margin));
            let options = AttentionOptions::default().store(KvStore::F32).isa(isa).mask(mask);
            let mut kernel = HybridAttention::new(shape, config.options(options)).unwrap();
            assert_close(&inputs.run(&mut kernel, &ends), &expected, isa.name());
            prop_assert_eq!(kernel.stats().total().skipped_values, skipped);
        }
    }
}

fn shape() -> AttentionShape {
    AttentionShape::new(2, 1, 32).unwrap()
}

/// Dense, delta and hybrid attention in every store that they have, on one account each.
fn every_kernel(mask: Mask) -> Vec<(String, MemoryBudget, Box<dyn AttentionKernel>)> {
    let mut all = Vec::new();
    for store in KvStore::ALL {
        let options = || {
            let budget = MemoryBudget::unlimited();
            (budget.clone(), AttentionOptions::default().isa(isa()).store(store).mask(mask).budget(budget))
        };
        let policy = ThresholdPolicy::Uniform(0.3);
        if store == store.dense() {
            let (budget, options) = options();
            let kernel = DenseAttention::new(shape(), options).unwrap();
            all.push((format!("dense, {store}"), budget, Box::new(kernel) as Box<dyn AttentionKernel>));
        }
        if store.is_delta() {
            let (budget, options) = options();
            let kernel = DeltaAttention::new(shape(), policy.clone(), 0, options).unwrap();
            all.push((format!("delta, {store}"), budget, Box::new(kernel)));
        }
        let (budget, options) = options();
        let kernel = HybridAttention::new(shape(), HybridConfig::new(policy).options(options)).unwrap();
        all.push((format!("hybrid, {store}"), budget, Box::new(kernel)));
    }
    all
}

#[test]
fn a_layer_holds_its_window_and_a_page_whatever_the_context() {
    let inputs = Inputs::new(shape(), 3000, 1);
    for (name, budget, mut kernel) in every_kernel(Mask::SlidingWindow(512)) {
        let mut most = [0, 0];
        inputs.run(&mut *kernel, &[700]);
        for end in 701..3000 {
            let growth = kernel.growth(1).unwrap();
            let before = budget.used();
            inputs.call(&mut *kernel, end).unwrap();
            assert_eq!(budget.used(), kernel.footprint().total(), "{name}, {end}");
            assert!(budget.used() <= before + growth, "{name}, {end}");
            most[usize::from(end > 1500)] = most[usize::from(end > 1500)].max(budget.used());
        }
        // What the keys are like makes a difference for codes.
        assert!(most[1] as f64 <= 1.1 * most[0] as f64, "{name}: {most:?}");
        if name == "dense, f16" {
            let page = CachePlan::new(1, 32, KvStore::F16, KeyPlan::Dense).footprint(512 + 64).total();
            // The table may be one slot larger.
            assert!(most[1] <= page + 256, "{name}: {most:?}, {page}");
        }
        assert_eq!(kernel.len(), 2999);
        drop(kernel);
        assert_eq!(budget.used(), 0, "{name}");
    }
}

/// A prefix in two calls, decoding behind it, and a call more: a query sees all tokens of its own call and of those before.
#[test]
fn bidirectional_calls_see_what_came_before_and_themselves() {
    let mask = Mask::Bidirectional;
    let inputs = Inputs::new(shape(), 230, 9);
    let ends = [90, 200, 201, 202, 230];
    let row = inputs.q_row();
    // Nothing after a call is seen in it: the last rows of a shorter input are its results.
    let expected = |method: &Method| -> Vec<f64> {
        let rows = |(first, end): (usize, usize)| {
            let shorter = Inputs {
                tokens: end,
                q: inputs.q[..end * row].to_vec(),
                k: inputs.k[..end * row / 2].to_vec(),
                v: inputs.v[..end * row / 2].to_vec(),
                ..inputs
            };
            shorter.reference(method).0[first * row..].to_vec()
        };
        [0].into_iter().chain(ends).zip(ends).flat_map(rows).collect()
    };
    let check = |kernel: &mut dyn AttentionKernel, budget: &MemoryBudget, method: &Method, what: &str| {
        let mut out = Vec::new();
        for end in ends {
            let most = budget.used() + kernel.growth(end - kernel.len()).unwrap();
            out.extend(inputs.call(kernel, end).unwrap());
            assert_eq!(budget.used(), kernel.footprint().total(), "{what}, {end}");
            assert!(budget.used() <= most, "{what}, {end}: {} of {most}", budget.used());
        }
        assert_close(&out, &expected(method), what);
    };
    let policy = ThresholdPolicy::Uniform(0.3);
    for store in KvStore::ALL {
        let options = || {
            let budget = MemoryBudget::unlimited();
            (budget.clone(), AttentionOptions::default().isa(isa()).store(store).mask(mask).budget(budget))
        };
        let delta = Method { mask, store, thresholds: Some(vec![vec![0.3; 32]]), ..Method::dense(&shape()) };
        if store == store.dense() {
            let (budget, options) = options();
            let mut kernel = DenseAttention::new(shape(), options).unwrap();
            let method = Method { mask, store, ..Method::dense(&shape()) };
            check(&mut kernel, &budget, &method, &format!("dense, {store}"));
        }
        if store.is_delta() {
            let (budget, options) = options();
            let mut kernel = DeltaAttention::new(shape(), policy.clone(), 0, options).unwrap();
            check(&mut kernel, &budget, &delta, &format!("delta, {store}"));
        }
        let (budget, options) = options();
        let config = HybridConfig::new(policy.clone()).exact_window(ExactWindow::Sliding(20)).exact_sinks(2);
        let mut kernel = HybridAttention::new(shape(), config.codes_from(0).options(options)).unwrap();
        let method = Method { exact_window: Some(ExactWindow::Sliding(20)), exact_sinks: 2, ..delta };
        check(&mut kernel, &budget, &method, &format!("hybrid, {store}"));
    }
}

#[test]
fn a_plan_knows_what_is_dropped() {
    let inputs = Inputs::new(shape(), 700, 8);
    for span in [1, 64, 100, 512] {
        let options = AttentionOptions::default().isa(isa()).mask(Mask::SlidingWindow(span));
        let mut kernel = DenseAttention::new(shape(), options).unwrap();
        let plan = CachePlan::new(1, 32, KvStore::F16, KeyPlan::Dense).attended(span);
        for end in 1..=700 {
            inputs.call(&mut kernel, end).unwrap();
            let (held, planned) = (kernel.footprint(), plan.footprint(end));
            assert_eq!((held.keys, held.values), (planned.keys, planned.values), "{span}, {end} tokens");
        }
    }
}

#[test]
fn no_cache_under_a_mask_that_quantises_is_larger_than_one_in_f16() {
    let inputs = Inputs::new(shape(), 1200, 2);
    for span in [1, 40, 64, 100, 256, 257, 300, 321, 512, 700] {
        // Where a chunk begins nothing is left in f16, but a block of codes with room.
        for (mask, more) in [(Mask::SlidingWindow(span), 0), (Mask::Chunked(span), 8 << 10)] {
            for theta in [0.0, 0.5] {
                let options = |store| AttentionOptions::default().isa(isa()).mask(mask).store(store);
                let mut dense = DenseAttention::new(shape(), options(KvStore::F16)).unwrap();
                let mut quantised = [KvStore::Int8, KvStore::Compact].map(|store| {
                    let config = HybridConfig::new(ThresholdPolicy::Uniform(theta)).options(options(store));
                    HybridAttention::new(shape(), config).unwrap()
                });
                for end in (1..=1200).step_by(if span == 300 { 1 } else { 17 }) {
                    inputs.call(&mut dense, end).unwrap();
                    for kernel in &mut quantised {
                        inputs.call(kernel, end).unwrap();
                        let (held, f16) = (kernel.footprint().total(), dense.footprint().total());
                        assert!(held <= f16 + more, "{mask}, theta {theta}, {end} tokens: {held} > {f16}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_cache_goes_back_as_far_as_it_has_what_is_attended_to() {
    let inputs = Inputs::new(shape(), 1000, 3);
    let mut compared = 0;
    for mask in [Mask::SlidingWindow(300), Mask::Chunked(300), Mask::SlidingWindow(1)] {
        for (name, budget, mut kernel) in every_kernel(mask) {
            inputs.run(&mut *kernel, &[100, 700, 950]);
            let expected = match kernel.truncate(301) {
                Err(AttentionError::Dropped { expected, got: 301 }) => expected,
                other => panic!("{name}, {mask}: {other:?}"),
            };
            assert!((600..=950).contains(&expected), "{name}, {mask}: {expected}");
            assert_eq!(kernel.len(), 950, "{name}, {mask}: nothing is lost");
            assert!(kernel.truncate(expected - 1).is_err(), "{name}, {mask}");
            kernel.truncate(expected).unwrap();
            assert_eq!((kernel.len(), budget.used()), (expected, kernel.footprint().total()));
            let again = inputs.run(&mut *kernel, &[expected + 1, 1000]);
            // Dense attention does not notice.
            if name.starts_with("dense") {
                let (_, _, mut other) =
                    every_kernel(mask).into_iter().find(|(other, ..)| *other == name).unwrap();
                inputs.run(&mut *other, &[expected]);
                let straight = inputs.run(&mut *other, &[expected + 1, 1000]);
                assert_eq!(again, straight, "{name}, {mask}");
                compared += 1;
            }
            kernel.truncate(0).unwrap();
            assert!(kernel.is_empty());
            inputs.run(&mut *kernel, &[400, 401]);
            assert_eq!(budget.used(), kernel.footprint().total(), "{name}, {mask}");
        }
    }
    assert_eq!(compared, 3 * 4);
}

#[test]
fn a_step_under_a_mask_can_be_taken_back_whatever_it_would_drop() {
    let inputs = Inputs::new(shape(), 1000, 4);
    for mask in [Mask::SlidingWindow(100), Mask::SlidingWindow(400), Mask::Chunked(100)] {
        for (name, budget, mut kernel) in every_kernel(mask) {
            inputs.run(&mut *kernel, &[399]);
            kernel.begin_step();
            let first = inputs.run(&mut *kernel, &[700, 900]);
            kernel.undo_step(399).unwrap();
            assert_eq!(budget.used(), kernel.footprint().total(), "{name}, {mask}");
            kernel.begin_step();
            assert_eq!(inputs.run(&mut *kernel, &[700, 900]), first, "{name}, {mask}");
            kernel.commit_step();
            assert!(kernel.truncate(400).is_err(), "{name}, {mask}: dropped when the step stands");
        }
    }
}

#[test]
fn the_zero_fraction_counts_tokens_that_have_been_dropped() {
    let inputs = Inputs::new(shape(), 900, 5);
    let kernel = |mask| {
        let options = options().mask(mask);
        let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3)).options(options);
        let mut kernel = HybridAttention::new(shape(), config).unwrap();
        inputs.run(&mut kernel, &[500, 501, 900]);
        kernel.stats().total()
    };
    let (all, some) = (kernel(Mask::Causal), kernel(Mask::SlidingWindow(200)));
    assert_eq!((all.elements, all.nonzeros), (some.elements, some.nonzeros));
    assert!(some.pairs < all.pairs / 2);
}

#[test]
fn caches_under_a_mask_narrow() {
    let inputs = Inputs::new(shape(), 900, 6);
    for mask in [Mask::SlidingWindow(200), Mask::SlidingWindow(400)] {
        for kind in 0..3 {
            let budget = MemoryBudget::unlimited();
            let options = options().mask(mask).budget(budget.clone());
            let mut kernel = kernels(shape(), &options, 0.3).swap_remove(kind);
            inputs.run(&mut *kernel, &[600]);
            while kernel.narrow().unwrap() > 0 {
                assert_eq!(budget.used(), kernel.footprint().total(), "{mask}");
            }
            let narrow = inputs.run(&mut *kernel, &[601, 900]);
            assert_eq!(budget.used(), kernel.footprint().total(), "{mask}");
            let mut exact = kernels(shape(), &options, 0.3).swap_remove(kind);
            inputs.run(&mut *exact, &[600]);
            let exact = inputs.run(&mut *exact, &[601, 900]);
            let off = narrow.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 0.2, "{mask}, kernel {kind}: {off}");
        }
    }
}

#[test]
fn a_cache_under_a_mask_narrows_whatever_it_still_holds_exactly() {
    let inputs = Inputs::new(shape(), 900, 6);
    // Sinks that end within a page, and windows that reach back further than the mask.
    for (window, sinks) in [(64, 40), (700, 4), (700, 40), (650, 70)] {
        for mask in [Mask::SlidingWindow(200), Mask::Chunked(250)] {
            let budget = MemoryBudget::unlimited();
            let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3));
            let config = config.exact_window(ExactWindow::Sliding(window)).exact_sinks(sinks);
            let options = options().mask(mask).budget(budget.clone());
            let kernel = || HybridAttention::new(shape(), config.clone().options(options.clone())).unwrap();
            let (mut narrow, mut exact) = (kernel(), kernel());
            inputs.run(&mut narrow, &[600]);
            let mut freed = 0;
            while let bytes @ 1.. = narrow.narrow().unwrap() {
                freed += bytes;
            }
            assert!(freed > 0, "{mask}, window {window}, {sinks} sinks");
            assert_eq!(budget.used(), narrow.footprint().total());
            let narrow = inputs.run(&mut narrow, &[601, 720, 900]);
            inputs.run(&mut exact, &[600]);
            let exact = inputs.run(&mut exact, &[601, 720, 900]);
            let off = narrow.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 0.2, "{mask}, window {window}, {sinks} sinks: {off}");
        }
    }
}

#[test]
fn layers_get_the_masks_of_the_context() {
    let context = KernelContext::new(shape()).isa(isa()).masks([Mask::SlidingWindow(128), Mask::Causal]);
    let inputs = Inputs::new(shape(), 600, 7);
    for spec in [KernelSpec::default(), KernelSpec::default().dense_up_to(0)] {
        let held = [0, 1, 2].map(|layer| {
            let mut kernel = spec.build(layer, &context).unwrap();
            inputs.run(&mut *kernel, &[600]);
            kernel.footprint().total()
        });
        assert!(2 * held[0] < held[1] && held[1] == held[2], "{held:?}: a layer beyond is causal");
    }
}

#[test]
fn a_mask_of_no_tokens_is_refused() {
    for mask in [Mask::SlidingWindow(0), Mask::Chunked(0)] {
        let error = DenseAttention::new(shape(), options().mask(mask)).unwrap_err();
        assert_eq!(error.to_string(), "mask: expected at least 1 token, got 0");
    }
}

/// Keys that are held exactly until they are dropped do not change less than others.
#[test]
fn a_cache_that_codes_nothing_has_no_zeros() {
    let shape = AttentionShape::new(4, 2, 16).unwrap();
    let inputs = Inputs::new(shape, 500, 1);
    for store in [KvStore::Compact, KvStore::F16] {
        let options = options().store(store).mask(Mask::SlidingWindow(128));
        let config = HybridConfig::new(ThresholdPolicy::Uniform(0.3)).options(options);
        let mut kernel = HybridAttention::new(shape, config).unwrap();
        for end in [100, 200, 300, 500] {
            inputs.run(&mut kernel, &[end]);
            let zeros = kernel.stats().total().zero_fraction();
            assert!(zeros < 0.9, "{store}, {end}: {zeros}");
        }
    }
}
