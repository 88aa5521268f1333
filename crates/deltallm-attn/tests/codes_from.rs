//! The stores that quantise, beside a window: a token is held once, and no cache is larger than one in f16.

use deltallm_attn::{
    AttentionKernel, AttentionOptions, AttentionShape, DenseAttention, ExactWindow, HybridAttention,
    HybridConfig, KvStore, MemoryBudget, SkipMargin, ThresholdPolicy, reference::Method,
};
use deltallm_core::{CachePlan, KeyPlan};
use proptest::prelude::*;

mod common;

use common::{Inputs, isa, worst};

const QUANTISED: [KvStore; 2] = [KvStore::Int8, KvStore::Compact];

fn config(store: KvStore, theta: f32, window: ExactWindow, sinks: usize) -> HybridConfig {
    let options = AttentionOptions::default().store(store).isa(isa());
    HybridConfig::new(ThresholdPolicy::Uniform(theta))
        .exact_window(window)
        .exact_sinks(sinks)
        .options(options)
}

fn codes_from(shape: AttentionShape, store: KvStore, window: usize, sinks: usize) -> usize {
    let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.5, escapes: 0.0, window, sinks };
    CachePlan::new(shape.kv_heads(), shape.head_dim(), store, keys).codes_from()
}

/// Keys that rest, keys of which every channel escapes, and calls of one token, of several and of all.
#[test]
fn no_cache_that_quantises_is_ever_larger_than_one_in_f16() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let tokens = 700;
    let inputs = Inputs::new(shape, tokens, 1);
    let ends: [Vec<usize>; 4] = [
        (1..=tokens).collect(),
        (1..=20).map(|call| 35 * call).collect(),
        vec![150, 151, 152, 400, 401, tokens],
        vec![tokens],
    ];
    let mut smaller = 0;
    for store in QUANTISED {
        for (window, sinks) in [(1, 0), (16, 4), (64, 4), (100, 30), (500, 4), (5000, 4)] {
            for (theta, ends) in
                [0.0, 0.001, 0.4].into_iter().flat_map(|theta| ends.iter().map(move |e| (theta, e)))
            {
                for exact_prompt in [0, 160] {
                    let config =
                        config(store, theta, ExactWindow::Sliding(window), sinks).exact_prompt(exact_prompt);
                    let mut kernel = HybridAttention::new(shape, config).unwrap();
                    let mut f16 = DenseAttention::new(shape, AttentionOptions::default().isa(isa())).unwrap();
                    for end in ends {
                        inputs.call(&mut kernel, *end).unwrap();
                        inputs.call(&mut f16, *end).unwrap();
                        let (held, dense) = (kernel.footprint().total(), f16.footprint().total());
                        assert!(
                            held <= dense,
                            "{store}, window {window}, {sinks} sinks, theta {theta}: {held} of {dense} for {end} tokens of {ends:?} {:?}",
                            kernel.footprint()
                        );
                        smaller += usize::from(held < dense);
                    }
                }
            }
        }
    }
    assert!(smaller > 1000, "{smaller}");
}

#[test]
fn a_plan_of_a_store_that_quantises_is_the_footprint_token_by_token() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    for store in QUANTISED {
        for (window, sinks) in [(2, 0), (16, 4), (64, 4), (100, 30)] {
            let mut inputs = Inputs::new(shape, 600, 1);
            // Half of the channels change at every step, by twice the threshold.
            let key = |at: usize| if at.is_multiple_of(2) { 1.0 + (at / 64 % 2) as f32 } else { 0.0 };
            inputs.k = (0..600 * 64).map(key).collect();
            let mut kernel =
                HybridAttention::new(shape, config(store, 0.5, ExactWindow::Sliding(window), sinks)).unwrap();
            let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.0, escapes: 0.0, window, sinks };
            let plan = CachePlan::new(1, 64, store, keys);
            for end in 1..=600 {
                inputs.call(&mut kernel, end).unwrap();
                let (mut held, planned) = (kernel.footprint(), plan.footprint(end));
                if end == plan.codes_from() {
                    // The window's table is new, and grows with its next page.
                    held.bookkeeping = planned.bookkeeping;
                }
                assert_eq!(held, planned, "{store}, window {window}, {end} tokens");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(24)))]

    /// Whether the length follows from the window or was chosen, and in whatever calls the tokens come.
    #[test]
    fn queries_before_codes_see_all_keys_exactly_and_others_do_not(
        tokens in 1_usize..200, seed: u64, store in prop::sample::select(&QUANTISED[..]), theta in 0.0_f32..1.0, window in 1_usize..60,
        sinks in 0_usize..9, from in prop::option::of(0_usize..150), cuts in prop::collection::vec(1_usize..150, 0..5),
        head_dim in prop_oneof![Just(64_usize), 1_usize..20],
    ) {
        // Where the length follows from the window, heads whose deltas take more than their keys are held whole: not these.
        let (head_dim, theta) = if from.is_none() { (64, theta.max(0.1)) } else { (head_dim, theta) };
        let shape = AttentionShape::new(2, 1, head_dim).unwrap();
        let tokens = if from.is_none() { tokens + codes_from(shape, store, window, sinks).min(600) } else { tokens };
        let inputs = Inputs::new(shape, tokens, seed);
        let method = Method {
            thresholds: Some(vec![vec![theta; head_dim]]), exact_window: Some(ExactWindow::Sliding(window)), exact_sinks: sinks, store,
            exact_until: from.unwrap_or_else(|| codes_from(shape, store, window, sinks)), ..Method::dense(&shape)
        };
        let (expected, _) = inputs.reference(&method);
        let config = config(store, theta, ExactWindow::Sliding(window), sinks).codes_from(from);
        let mut ends: Vec<usize> = cuts.iter().scan(0, |sum, cut| { *sum += cut; Some(*sum) }).take_while(|end| *end < tokens).collect();
        ends.push(tokens);
        for ends in [ends, (1..=tokens).collect()] {
            let mut kernel = HybridAttention::new(shape, config.clone()).unwrap();
            let out = inputs.run(&mut kernel, &ends);
            let worst = worst(&out, &expected);
            prop_assert!(worst <= 2e-5, "off by {worst:e}, calls end at {ends:?}");
        }
    }
}

/// All of their channels escape: the keys lie in 8 bits then.
#[test]
fn keys_that_never_rest_are_held_whole() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let inputs = Inputs::new(shape, 900, 2);
    let config =
        config(KvStore::Compact, 0.0, ExactWindow::Sliding(16), 4).skip_margin(SkipMargin::Fixed(1e4));
    let method = Method {
        thresholds: Some(vec![vec![0.0; 64]]),
        exact_window: Some(ExactWindow::Sliding(16)),
        exact_sinks: 4,
        exact_until: codes_from(shape, KvStore::Compact, 16, 4),
        store: KvStore::Compact,
        whole_keys: true,
        ..Method::dense(&shape)
    };
    let (expected, _) = inputs.reference(&method);
    let one_by_one: Vec<usize> = (1..=900).collect();
    for ends in [&one_by_one[..], &[900], &[300, 301, 900]] {
        let (mut config, budget) = (config.clone(), MemoryBudget::unlimited());
        config.options.budget = budget.clone();
        let mut kernel = HybridAttention::new(shape, config).unwrap();
        let mut out = Vec::new();
        for end in ends {
            out.extend(inputs.call(&mut kernel, *end).unwrap());
            assert_eq!(budget.used(), kernel.footprint().total());
        }
        let worst = worst(&out, &expected);
        assert!(worst <= 2e-4, "off by {worst:e}");
        assert!(kernel.stats().total().zero_fraction() < 0.001);
        // Taken back and read again.
        kernel.truncate(700).unwrap();
        let again = inputs.run(&mut kernel, &[900]);
        let row = inputs.q_row();
        for (x, y) in again[100 * row..].iter().zip(&out[800 * row..]) {
            assert!((x - y).abs() < 1e-3, "{x} {y}");
        }
    }
}

#[test]
fn keys_that_become_whole_in_a_step_that_is_taken_back_cost_what_they_did_before() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let mut inputs = Inputs::new(shape, 700, 11);
    // Keys that rest, and then keys of which every channel escapes: their deltas are far below f16 until their room doubles.
    let (calm, wild) = inputs.k.split_at_mut(450 * 64);
    calm.fill(1.0);
    wild.iter_mut().for_each(|x| *x *= 1e3);
    let budget = MemoryBudget::unlimited();
    let options = AttentionOptions::default().store(KvStore::Compact).isa(isa()).budget(budget.clone());
    let config = config(KvStore::Compact, 0.4, ExactWindow::Sliding(16), 4).options(options);
    let mut kernel = HybridAttention::new(shape, config).unwrap();
    for end in 1..=700 {
        let nonzeros = kernel.stats().total().nonzeros;
        kernel.begin_step();
        inputs.call(&mut kernel, end).unwrap();
        kernel.undo_step(end - 1).unwrap();
        assert_eq!(kernel.stats().total().nonzeros, nonzeros, "{end} tokens");
        assert_eq!(budget.used(), kernel.footprint().total(), "{end} tokens");
        inputs.call(&mut kernel, end).unwrap();
    }
    assert_eq!(kernel.stats().total().zero_fraction(), 0.0, "whole");
}

/// The zero fraction is that of all keys, those of the window included.
#[test]
fn the_zero_fraction_counts_keys_that_are_not_coded_yet() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let inputs = Inputs::new(shape, 500, 3);
    let window = ExactWindow::Sliding(64);
    let mut early =
        HybridAttention::new(shape, config(KvStore::Compact, 0.4, window, 4).codes_from(0)).unwrap();
    let mut late =
        HybridAttention::new(shape, config(KvStore::Compact, 0.4, window, 4).codes_from(10_000)).unwrap();
    let counts =
        |kernel: &HybridAttention| (kernel.stats().total().elements, kernel.stats().total().nonzeros);
    for end in [1, 63, 64, 65, 100, 128, 129, 499, 500] {
        inputs.call(&mut early, end).unwrap();
        inputs.call(&mut late, end).unwrap();
        assert_eq!(counts(&early), counts(&late), "{end} tokens");
    }
    assert!((0.2..0.9).contains(&late.stats().total().zero_fraction()));
}

/// The table of many small pages of one channel takes more than they save.
#[test]
fn a_window_keeps_large_pages_where_small_ones_take_more_also_after_a_cut() {
    let shape = AttentionShape::new(1, 1, 1).unwrap();
    let inputs = Inputs::new(shape, 700, 7);
    for store in QUANTISED {
        let budget = MemoryBudget::unlimited();
        let options = AttentionOptions::default().store(store).isa(isa()).budget(budget.clone());
        let config = config(store, 0.1, ExactWindow::Sliding(200), 0).codes_from(0).options(options);
        let mut kernel = HybridAttention::new(shape, config).unwrap();
        let fill = |kernel: &mut HybridAttention, ends: std::ops::RangeInclusive<usize>| {
            for end in ends {
                let out = inputs.call(kernel, end).unwrap();
                assert!(out.iter().all(|x| x.abs() <= 1.001), "{out:?}");
                assert_eq!(budget.used(), kernel.footprint().total(), "{store}, {end} tokens");
            }
        };
        fill(&mut kernel, 1..=400);
        // Four pages of 64 numbers in f16 for the keys, and as many for the values.
        assert_eq!(kernel.footprint().window, 1024, "{store}");
        // The exact keys before token 192 are gone, and the window does not come back to them.
        kernel.truncate(100).unwrap();
        fill(&mut kernel, 101..=700);
    }
}

/// Going from f16 to codes frees memory, so it works where a budget has nothing left.
#[test]
fn codes_begin_within_a_budget_that_is_used_up() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let inputs = Inputs::new(shape, 400, 4);
    let window = ExactWindow::Sliding(64);
    for store in QUANTISED {
        let from = codes_from(shape, store, 64, 4);
        let dense = CachePlan::new(1, 64, KvStore::F16, KeyPlan::Dense);
        let budget = MemoryBudget::new(dense.footprint(from).total());
        let options = AttentionOptions::default().store(store).isa(isa()).budget(budget.clone());
        let mut kernel = HybridAttention::new(shape, config(store, 0.4, window, 4).options(options)).unwrap();
        for end in 1..from {
            inputs.call(&mut kernel, end).unwrap();
        }
        assert_eq!(budget.available(), 0);
        inputs.call(&mut kernel, from).unwrap();
        assert_eq!(budget.used(), kernel.footprint().total());
        assert!(budget.available() > 0);
    }
}

/// A refused token leaves everything as it was, what was about to be coded too.
#[test]
fn a_refused_token_undoes_what_it_coded() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let inputs = Inputs::new(shape, 900, 5);
    let window = ExactWindow::Sliding(64);
    let free = |tokens: usize| {
        let mut kernel = HybridAttention::new(shape, config(KvStore::Compact, 0.4, window, 4)).unwrap();
        inputs.run(&mut kernel, &(1..=tokens).collect::<Vec<_>>());
        kernel
    };
    let mut refused = 0;
    for spare in (0..9000).step_by(450) {
        let budget = MemoryBudget::new(free(500).footprint().total() + spare);
        let options = AttentionOptions::default().store(KvStore::Compact).isa(isa()).budget(budget.clone());
        let config = config(KvStore::Compact, 0.4, window, 4).options(options);
        let mut kernel = HybridAttention::new(shape, config).unwrap();
        let mut out = Vec::new();
        let mut end = 1;
        while end <= 900 {
            let held = (kernel.len(), budget.used(), kernel.stats());
            let growth = kernel.growth(1).unwrap();
            match inputs.call(&mut kernel, end) {
                Ok(answer) => {
                    assert_eq!(budget.used(), kernel.footprint().total());
                    out = answer;
                    end += 1;
                }
                Err(_) => {
                    assert!(growth > held.1.abs_diff(budget.used()) && held.0 == kernel.len());
                    assert_eq!(held.2, kernel.stats());
                    refused += 1;
                    break;
                }
            }
        }
        // What was answered last is what a cache without a limit answers.
        let mut same = free(end - 2);
        assert_eq!(out, inputs.call(&mut same, end - 1).unwrap(), "{end}");
    }
    assert!(refused > 3, "{refused}");
}
