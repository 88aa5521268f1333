//! Every kernel with every instruction set against the f64 reference.
//!
//! Tolerance: outputs are weighted means of values of magnitude about 1, so errors are absolute. Single-precision sums
//! of up to a few hundred terms stay within 2e-5.

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, Mask, Precision, QUERY_TILE,
    SkipMargin, ThresholdPolicy, attend_dense, attend_hybrid, reference::Method,
};
use deltallm_core::TargetSparsity;
use deltallm_simd::tuning::PREPARED_KEYS;
use proptest::prelude::*;

mod common;

use common::{Inputs, isa, worst};

const TOLERANCE: f64 = 2e-5;

fn options(isa: Isa, store: KvStore) -> AttentionOptions {
    AttentionOptions::default().isa(isa).store(store)
}

/// A configuration whose caches hold codes from the first token on, so that short inputs go through them.
fn coded_at_once(policy: ThresholdPolicy) -> HybridConfig {
    HybridConfig::new(policy).codes_from(0)
}

fn thresholds(shape: AttentionShape, theta: f32) -> Option<Vec<Vec<f32>>> {
    Some(vec![vec![theta; shape.head_dim()]; shape.kv_heads()])
}

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    let worst = worst(got, expected);
    assert!(worst <= TOLERANCE, "{what}: off by {worst:e}");
}

fn same(a: &[f32], b: &[f32], what: &str) {
    let b: Vec<f64> = b.iter().map(|x| f64::from(*x)).collect();
    assert_close(a, &b, what);
}

fn shapes() -> impl Strategy<Value = AttentionShape> {
    let head_dims = prop_oneof![Just(64_usize), Just(80), Just(96), Just(128), Just(32), 1_usize..20];
    (1_usize..=8, 1_usize..=3, head_dims)
        .prop_map(|(group, kv_heads, d)| AttentionShape::new(group * kv_heads, kv_heads, d).unwrap())
}

fn stores(of: &'static [KvStore]) -> impl Strategy<Value = KvStore> {
    prop::sample::select(of)
}

const DENSE: [KvStore; 4] = [KvStore::F32, KvStore::F16, KvStore::Bf16, KvStore::Int8];
const DELTA: [KvStore; 4] = [KvStore::F32, KvStore::F16, KvStore::Bf16, KvStore::Compact];

fn windows() -> impl Strategy<Value = ExactWindow> {
    prop_oneof![
        (1_usize..100).prop_map(ExactWindow::Sliding),
        (0.01_f32..1.0).prop_map(|scale| ExactWindow::Block { scale })
    ]
}

fn margins() -> impl Strategy<Value = SkipMargin> {
    prop_oneof![
        (0.2_f32..4.0).prop_map(SkipMargin::Fixed),
        (-2.0_f32..2.0, 0.0_f32..1.0, 0.5_f32..3.0).prop_map(|(base, slope, least)| SkipMargin::Length {
            base,
            slope,
            least
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(48)))]

    #[test]
    fn dense_equals_the_reference(shape in shapes(), tokens in 1_usize..200, seed: u64, store in stores(&DENSE), capped: bool) {
        let inputs = Inputs::new(shape, tokens, seed);
        let softcap = capped.then_some(3.0_f32);
        let method = Method { store, softcap: softcap.map(f64::from), ..Method::dense(&shape) };
        let (expected, _) = inputs.reference(&method);
        for isa in Isa::available() {
            let options = options(isa, store).softcap(softcap);
            let out = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]);
            assert_close(&out, &expected, isa.name());
        }
    }

    #[test]
    fn delta_equals_the_reference(shape in shapes(), tokens in 1_usize..200, seed: u64, store in stores(&DELTA), theta in 0.0_f32..1.0) {
        let inputs = Inputs::new(shape, tokens, seed);
        let method = Method { thresholds: thresholds(shape, theta), store, ..Method::dense(&shape) };
        let (expected, _) = inputs.reference(&method);
        for isa in Isa::available() {
            let mut kernel =
                DeltaAttention::new(shape, ThresholdPolicy::Uniform(theta), 0, options(isa, store)).unwrap();
            assert_close(&inputs.run(&mut kernel, &[tokens]), &expected, isa.name());
        }
    }

    #[test]
    fn hybrid_equals_the_reference(
        shape in shapes(), tokens in 1_usize..300, seed: u64, store in stores(&KvStore::ALL), theta in 0.0_f32..1.0,
        window in windows(), sinks in 0_usize..70,
    ) {
        let inputs = Inputs::new(shape, tokens, seed);
        let method = Method {
            thresholds: thresholds(shape, theta), exact_window: Some(window), prompt_end: tokens, exact_sinks: sinks, store,
            ..Method::dense(&shape)
        };
        let (expected, _) = inputs.reference(&method);
        let config = coded_at_once(ThresholdPolicy::Uniform(theta)).exact_window(window).exact_sinks(sinks);
        for isa in Isa::available() {
            let mut kernel = HybridAttention::new(shape, config.clone().options(options(isa, store))).unwrap();
            assert_close(&inputs.run(&mut kernel, &[tokens]), &expected, isa.name());
        }
    }

    #[test]
    fn skipping_equals_the_reference(
        shape in shapes(), tokens in 1_usize..300, seed: u64, margin in margins(), window in 1_usize..40,
        one_by_one: bool,
    ) {
        let inputs = Inputs::new(shape, tokens, seed);
        let method = Method {
            thresholds: thresholds(shape, 0.4), exact_window: Some(ExactWindow::Sliding(window)), exact_sinks: 2,
            skip_margin: Some(margin), ..Method::dense(&shape)
        };
        let method = method.in_calls_of(if one_by_one { 1 } else { tokens }, &shape);
        let (expected, skipped) = inputs.reference(&method);
        // A score within rounding of the margin may fall on either side: such inputs prove nothing.
        let near = |by: f32| {
            let moved = match margin {
                SkipMargin::Length { base, slope, least } => {
                    SkipMargin::Length { base: base + by, slope, least: least + by }
                }
                SkipMargin::Fixed(margin) => SkipMargin::Fixed(margin + by),
                other => panic!("{other}"),
            };
            let moved = Method { skip_margin: Some(moved), ..method.clone() };
            inputs.reference(&moved).1
        };
        prop_assume!(near(1e-4) == skipped && near(-1e-4) == skipped);
        let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(window)).exact_sinks(2).skip_margin(margin);
        let ends: Vec<usize> = if one_by_one { (1..=tokens).collect() } else { vec![tokens] };
        for isa in Isa::available() {
            let mut kernel = HybridAttention::new(shape, config.clone().options(options(isa, KvStore::F32))).unwrap();
            assert_close(&inputs.run(&mut kernel, &ends), &expected, isa.name());
            prop_assert_eq!(kernel.stats().total().skipped_values, skipped);
        }
    }

    #[test]
    fn any_chunks_equal_one_call(shape in shapes(), cuts in prop::collection::vec(1_usize..90, 1..6), seed: u64, store in stores(&KvStore::ALL), window in windows()) {
        let ends: Vec<usize> = cuts.iter().scan(0, |sum, cut| { *sum += cut; Some(*sum) }).collect();
        let tokens = *ends.last().unwrap();
        let inputs = Inputs::new(shape, tokens, seed);
        let options = options(isa(), store);
        let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(window).exact_sinks(3);
        let mut kernel = HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
        kernel.begin_prompt(tokens);
        let chunked = inputs.run(&mut kernel, &ends);
        let mut whole = HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
        same(&chunked, &inputs.run(&mut whole, &[tokens]), "hybrid");
        prop_assert_eq!(kernel.stats(), whole.stats());
        if DENSE.contains(&store) {
            let dense = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &ends);
            same(&dense, &inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]), "dense");
        }
    }

    #[test]
    fn the_stateless_calls_equal_the_kernels(shape in shapes(), cached in 1_usize..200, new in 1_usize..40, seed: u64) {
        let tokens = cached + new;
        let inputs = Inputs::new(shape, tokens, seed);
        let options = options(isa(), KvStore::F32);
        let config = coded_at_once(ThresholdPolicy::Uniform(0.3)).skip_margin(None);
        let (q, k, v) = (inputs.q(cached..tokens), inputs.kv(&inputs.k, 0..tokens), inputs.kv(&inputs.v, 0..tokens));
        let mut out = vec![0.0; new * inputs.q_row()];
        let dims = [new, shape.heads(), shape.head_dim()];
        attend_dense(shape, &options, q, k, v, HeadsViewMut::new(&mut out, dims).unwrap()).unwrap();
        let dense = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]);
        same(&out, &dense[cached * inputs.q_row()..], "dense");
        attend_hybrid(shape, &config.clone().options(options.clone()), q, k, v, HeadsViewMut::new(&mut out, dims).unwrap()).unwrap();
        let hybrid = inputs.run(&mut HybridAttention::new(shape, config.clone().options(options.clone())).unwrap(), &[tokens]);
        same(&out, &hybrid[cached * inputs.q_row()..], "hybrid");
    }
}

/// Lengths on purpose: one, and around the edges of blocks (64), window pages (16) and query tiles.
const EDGES: [usize; 14] = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];

fn smollm() -> AttentionShape {
    AttentionShape::new(9, 3, 64).unwrap()
}

#[test]
fn theta_zero_equals_dense() {
    for tokens in EDGES {
        let inputs = Inputs::new(smollm(), tokens, 1);
        for store in [KvStore::F32, KvStore::F16, KvStore::Bf16] {
            let options = options(isa(), store);
            let dense = inputs.run(&mut DenseAttention::new(smollm(), options.clone()).unwrap(), &[tokens]);
            let largest = dense.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            let policy = ThresholdPolicy::Uniform(0.0);
            let mut delta = DeltaAttention::new(smollm(), policy.clone(), 0, options.clone()).unwrap();
            let config = coded_at_once(policy).exact_window(ExactWindow::Sliding(8));
            let mut hybrid = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
            for kernel in [&mut delta as &mut dyn AttentionKernel, &mut hybrid] {
                for (x, y) in inputs.run(kernel, &[tokens]).iter().zip(&dense) {
                    assert!((x - y).abs() <= 1e-5 * largest, "{tokens} {store}: {x} {y}");
                }
            }
        }
    }
}

#[test]
fn a_window_over_everything_equals_dense_bit_for_bit() {
    for tokens in EDGES {
        let inputs = Inputs::new(smollm(), tokens, 2);
        for window in [
            ExactWindow::Sliding(tokens),
            ExactWindow::Sliding(usize::MAX),
            ExactWindow::Block { scale: 1.0 },
        ] {
            let options = options(isa(), KvStore::F16);
            let dense = inputs.run(&mut DenseAttention::new(smollm(), options.clone()).unwrap(), &[tokens]);
            let config = coded_at_once(ThresholdPolicy::Uniform(9.0)).exact_window(window).exact_sinks(0);
            let mut hybrid = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
            assert_eq!(inputs.run(&mut hybrid, &[tokens]), dense, "{tokens} {window:?}");
            assert_eq!(hybrid.stats().total().sparsity(), 0.0);
        }
    }
}

#[test]
fn token_by_token_equals_prefill() {
    let tokens = 200;
    let inputs = Inputs::new(smollm(), tokens, 3);
    let options = options(isa(), KvStore::F32);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(20));
    let make: [&dyn Fn() -> Box<dyn AttentionKernel>; 3] = [
        &|| Box::new(DenseAttention::new(smollm(), options.clone()).unwrap()),
        &|| {
            Box::new(
                DeltaAttention::new(smollm(), ThresholdPolicy::Uniform(0.4), 0, options.clone()).unwrap(),
            )
        },
        &|| Box::new(HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap()),
    ];
    for make in make {
        let (mut one_by_one, mut at_once) = (make(), make());
        let steps: Vec<usize> = (1..=tokens).collect();
        same(&inputs.run(&mut *one_by_one, &steps), &inputs.run(&mut *at_once, &[tokens]), "token by token");
        assert_eq!(one_by_one.stats(), at_once.stats());
    }
}

#[test]
fn every_store_is_the_reference_around_every_edge() {
    for store in KvStore::ALL {
        for head_dim in [64, 80, 96, 128, 33] {
            let shape = AttentionShape::new(3, 1, head_dim).unwrap();
            for tokens in EDGES {
                let inputs = Inputs::new(shape, tokens, 11);
                for window in [tokens.saturating_sub(1).max(1), tokens, tokens + 1, 31, 32, 33, 64] {
                    let window = ExactWindow::Sliding(window);
                    let method = Method {
                        thresholds: thresholds(shape, 0.3),
                        exact_window: Some(window),
                        exact_sinks: 2,
                        store,
                        ..Method::dense(&shape)
                    };
                    let config =
                        coded_at_once(ThresholdPolicy::Uniform(0.3)).exact_window(window).exact_sinks(2);
                    let mut kernel =
                        HybridAttention::new(shape, config.clone().options(options(isa(), store))).unwrap();
                    let got = inputs.run(&mut kernel, &[tokens]);
                    let what = format!("{store}, {head_dim} channels, {tokens} tokens, {window}");
                    assert_close(&got, &inputs.reference(&method).0, &what);
                }
            }
        }
    }
}

#[test]
fn token_by_token_equals_prefill_in_every_store() {
    let tokens = 150;
    let inputs = Inputs::new(smollm(), tokens, 12);
    let steps: Vec<usize> = (1..=tokens).collect();
    for store in KvStore::ALL {
        for window in [1, 20, 64] {
            let options = options(isa(), store);
            let config =
                coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(window));
            let mut one_by_one =
                HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
            let mut at_once =
                HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
            let got = inputs.run(&mut one_by_one, &steps);
            same(&got, &inputs.run(&mut at_once, &[tokens]), &format!("{store}, window {window}"));
            assert_eq!(one_by_one.stats(), at_once.stats());
        }
    }
}

#[test]
fn a_store_that_a_kernel_has_no_use_for_is_refused() {
    let policy = ThresholdPolicy::Uniform(0.4);
    for store in KvStore::ALL {
        let options = options(isa(), store);
        let dense = DenseAttention::new(smollm(), options.clone()).map(drop);
        let delta = DeltaAttention::new(smollm(), policy.clone(), 0, options.clone()).map(drop);
        assert!(
            HybridAttention::new(smollm(), coded_at_once(policy.clone()).options(options.clone())).is_ok()
        );
        for (result, stores) in [(dense, DENSE), (delta, DELTA)] {
            match result {
                Ok(()) => assert!(stores.contains(&store)),
                Err(AttentionError::Store { got, .. }) => assert!(got == store && !stores.contains(&store)),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn after_the_prompt_a_block_window_slides() {
    let (prompt, tokens) = (50, 90);
    let inputs = Inputs::new(smollm(), tokens, 4);
    let (window, theta) = (ExactWindow::Block { scale: 0.2 }, 0.5);
    let method = Method {
        thresholds: thresholds(smollm(), theta),
        exact_window: Some(window),
        prompt_end: prompt,
        ..Method::dense(&smollm())
    };
    let config = coded_at_once(ThresholdPolicy::Uniform(theta)).exact_window(window).exact_sinks(0);
    let options = options(isa(), KvStore::F32);
    let mut kernel = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
    let ends: Vec<usize> = std::iter::once(prompt).chain(prompt + 1..=tokens).collect();
    assert_close(&inputs.run(&mut kernel, &ends), &inputs.reference(&method).0, "prompt, then decode");
}

#[test]
fn a_cut_ends_the_prompt_that_had_been_announced() {
    let inputs = Inputs::new(smollm(), 60, 8);
    let config = |window| {
        let config = coded_at_once(ThresholdPolicy::Uniform(0.5)).exact_window(window).exact_sinks(0);
        config.options(options(isa(), KvStore::F32))
    };
    let one_by_one: Vec<usize> = (21..=60).collect();
    let mut cut_back = HybridAttention::new(smollm(), config(ExactWindow::Block { scale: 0.2 })).unwrap();
    cut_back.begin_prompt(100);
    inputs.run(&mut cut_back, &[30]);
    cut_back.truncate(20).unwrap();
    let got = inputs.run(&mut cut_back, &one_by_one);
    // What comes after the cut follows a prompt whose blocks had 20 tokens.
    let mut sliding = HybridAttention::new(smollm(), config(ExactWindow::Sliding(20))).unwrap();
    inputs.run(&mut sliding, &[20]);
    same(&got, &inputs.run(&mut sliding, &one_by_one), "after the cut");
}

#[test]
fn a_cut_into_an_exact_prompt_ends_it() {
    let inputs = Inputs::new(smollm(), 120, 9);
    let one_by_one: Vec<usize> = (51..=120).collect();
    let [got, expected] = [100, 0].map(|exact_prompt| {
        let config = coded_at_once(ThresholdPolicy::Uniform(0.6)).exact_window(ExactWindow::Sliding(9));
        let config = config.exact_prompt(exact_prompt).options(options(isa(), KvStore::F32));
        let mut kernel = HybridAttention::new(smollm(), config).unwrap();
        inputs.run(&mut kernel, &[100]);
        kernel.truncate(50).unwrap();
        (inputs.run(&mut kernel, &one_by_one), kernel.footprint())
    });
    assert_eq!(got, expected);
}

/// Runs a kernel in calls that end at `ends`, which decide as calls of `call` tokens do.
fn assert_skips_like_the_reference(margin: SkipMargin, call: usize, ends: &[usize]) {
    let inputs = Inputs::new(smollm(), *ends.last().unwrap(), 10);
    let config =
        coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(9)).exact_sinks(2);
    let config = config.skip_margin(margin);
    let method = Method {
        thresholds: thresholds(smollm(), 0.4),
        exact_window: Some(config.exact_window),
        exact_sinks: config.exact_sinks,
        skip_margin: config.skip_margin,
        ..Method::dense(&smollm())
    };
    let (expected, skipped) = inputs.reference(&method.in_calls_of(call, &smollm()));
    for isa in Isa::available() {
        let config = config.clone().options(options(isa, KvStore::F32));
        let mut kernel = HybridAttention::new(smollm(), config).unwrap();
        assert_close(&inputs.run(&mut kernel, ends), &expected, isa.name());
        assert_eq!(kernel.stats().total().skipped_values, skipped, "{isa}");
    }
}

/// In the last tile of a call, and token by token.
#[test]
fn a_query_that_decides_alone_skips_less() {
    let margin = SkipMargin::Length { base: -4.0, slope: 1.0, least: 0.5 };
    let tokens = 4 * QUERY_TILE + 1;
    assert_skips_like_the_reference(margin, QUERY_TILE, &[tokens]);
    assert_skips_like_the_reference(margin, 1, &(1..=tokens).collect::<Vec<_>>());
}

/// A history longer than what is prepared at a time: in one call, in several, and under a mask that leaves the first keys behind.
#[test]
fn a_history_that_is_prepared_in_rounds_equals_the_reference() {
    let shape = AttentionShape::new(1, 1, 8).unwrap();
    let inputs = Inputs::new(shape, PREPARED_KEYS + 700, 21);
    let one_call = vec![inputs.tokens];
    // At the ends of tiles: a call that covers a part of one decides for that part.
    let calls = vec![14 * QUERY_TILE, PREPARED_KEYS + QUERY_TILE, inputs.tokens];
    let window = ExactWindow::Sliding(1000);
    for (mask, ends) in [(Mask::Causal, one_call), (Mask::SlidingWindow(PREPARED_KEYS + 200), calls)] {
        let method = Method {
            mask,
            thresholds: thresholds(shape, 0.4),
            exact_window: Some(window),
            exact_sinks: 2,
            skip_margin: Some(SkipMargin::Fixed(0.4)),
            ..Method::dense(&shape)
        };
        let method = method.in_calls_of(QUERY_TILE, &shape);
        let (expected, skipped) = inputs.reference(&method);
        assert!(skipped as usize > inputs.tokens * inputs.tokens / 8, "{skipped}");
        for (isa, precision) in
            Isa::available().into_iter().zip([Precision::F32, Precision::Int16].into_iter().cycle())
        {
            let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(window).exact_sinks(2);
            let options = options(isa, KvStore::F32).mask(mask).precision(precision);
            let config = config.skip_margin(method.skip_margin).options(options);
            let mut kernel = HybridAttention::new(shape, config).unwrap();
            let got = inputs.run(&mut kernel, &ends);
            // Of millions of scores some lie within rounding of the margin, on either side of it.
            let off = kernel.stats().total().skipped_values.abs_diff(skipped);
            let (worst, what) = (worst(&got, &expected), format!("{isa}, {precision:?}, {mask:?}"));
            assert!(
                off as f64 <= 1e-3 * skipped as f64 && worst < 0.02,
                "{what}: {off} of {skipped}, {worst:e}"
            );
        }
    }
}

/// With 16 heads a kv head a tile has four queries, and this call more tiles than are attended together.
#[test]
fn a_call_of_many_tiles_equals_the_reference() {
    let shape = AttentionShape::new(16, 1, 8).unwrap();
    let inputs = Inputs::new(shape, 800, 22);
    let method = Method {
        thresholds: thresholds(shape, 0.4),
        exact_window: Some(ExactWindow::Sliding(100)),
        ..Method::dense(&shape)
    };
    let (expected, _) = inputs.reference(&method);
    for isa in Isa::available() {
        let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(100));
        let config = config.exact_sinks(0).skip_margin(None).options(options(isa, KvStore::F32));
        let mut kernel = HybridAttention::new(shape, config).unwrap();
        assert_close(&inputs.run(&mut kernel, &[inputs.tokens]), &expected, isa.name());
    }
}

/// Few queries leave some lanes of a vector over.
#[test]
fn lanes_without_a_query_keep_no_value_alive() {
    for more in [1, 3, 6] {
        let tokens = 2 * QUERY_TILE + more;
        assert_skips_like_the_reference(SkipMargin::Fixed(0.5), QUERY_TILE, &[tokens]);
    }
}

#[test]
fn tiles_start_at_multiples_wherever_a_call_begins() {
    let inputs = Inputs::new(smollm(), 150, 11);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(9));
    let config = config.skip_margin(SkipMargin::Fixed(0.8)).options(options(isa(), KvStore::F32));
    let [at_once, in_two] = [&[150][..], &[10, 150]].map(|ends| {
        let mut kernel = HybridAttention::new(smollm(), config.clone()).unwrap();
        inputs.run(&mut kernel, ends)
    });
    let whole = QUERY_TILE * inputs.q_row();
    same(&in_two[whole..], &at_once[whole..], "from the second tile on");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let tokens = 300;
    let inputs = Inputs::new(smollm(), tokens, 5);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).skip_margin(SkipMargin::Fixed(2.0));
    let run = |parallel| {
        let options = options(isa(), KvStore::F32).parallel(parallel);
        let mut dense = DenseAttention::new(smollm(), options.clone()).unwrap();
        let mut hybrid = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
        let ends = [200, 201, 202, tokens];
        (inputs.run(&mut dense, &ends), inputs.run(&mut hybrid, &ends), hybrid.stats())
    };
    let serial = run(false);
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 3, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(true)), serial, "{threads} threads");
    }
    assert_eq!(run(true), serial);
}

#[test]
fn a_cut_within_the_window_leaves_no_trace() {
    for store in KvStore::ALL {
        cut_within_the_window(store);
    }
}

fn cut_within_the_window(store: KvStore) {
    let inputs = Inputs::new(smollm(), 220, 6);
    let dense_store = if DENSE.contains(&store) { store } else { KvStore::F16 };
    let dense_options = options(isa(), dense_store);
    let options = options(isa(), store);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).exact_window(ExactWindow::Sliding(64));
    for (reached, cut) in [(150, 150), (150, 149), (151, 128), (129, 127), (100, 100), (65, 63), (63, 0)] {
        // A window of 64 keeps 63 keys, so a cut of 0 to 48 keys leaves the window of the next query incomplete
        // unless all keys are still there; the expected result knows which exact keys are left.
        let mut cut_back = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
        inputs.run(&mut cut_back, &[reached]);
        cut_back.truncate(cut).unwrap();
        assert_eq!(cut_back.len(), cut);
        let mut dense = DenseAttention::new(smollm(), dense_options.clone()).unwrap();
        inputs.run(&mut dense, &[reached]);
        dense.truncate(cut).unwrap();
        let mut fresh = DenseAttention::new(smollm(), dense_options.clone()).unwrap();
        if cut > 0 {
            inputs.run(&mut fresh, &[cut]);
        }
        assert_eq!(inputs.run(&mut dense, &[220]), inputs.run(&mut fresh, &[220]));
        assert_eq!(dense.footprint(), fresh.footprint());

        let after = inputs.run(&mut cut_back, &[220]);
        let mut straight = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
        let expected = inputs.run(&mut straight, &[220]);
        // From 63 tokens after the cut on, every window is full again.
        let full = (63 * inputs.q_row()).min(after.len());
        same(&after[full..], &expected[(cut * inputs.q_row() + full)..], "once the window is full");
        assert_eq!(cut_back.stats().total().nonzeros, straight.stats().total().nonzeros);
    }
}

#[test]
fn strides_do_not_matter() {
    use ndarray::{Array3, s};
    let (tokens, shape) = (20, smollm());
    let inputs = Inputs::new(shape, tokens, 7);
    let options = options(isa(), KvStore::F32);
    let expected = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]);
    let array = |data: &[f32], heads| Array3::from_shape_vec((tokens, heads, 64), data.to_vec()).unwrap();
    let (q, k, v) = (array(&inputs.q, 9), array(&inputs.k, 3), array(&inputs.v, 3));

    // Head-major memory, seen as token-major.
    let head_major = |a: &Array3<f32>| a.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    let (q1, k1, v1) = (head_major(&q), head_major(&k), head_major(&v));
    let mut out1 = Array3::zeros((9, tokens, 64));
    DenseAttention::new(shape, options.clone())
        .unwrap()
        .forward(
            q1.view().permuted_axes([1, 0, 2]),
            k1.view().permuted_axes([1, 0, 2]),
            v1.view().permuted_axes([1, 0, 2]),
            out1.view_mut().permuted_axes([1, 0, 2]),
        )
        .unwrap();
    assert_eq!(out1.permuted_axes([1, 0, 2]).as_standard_layout().as_slice().unwrap(), expected);

    // Every other channel of wider arrays, rows in reverse memory order.
    let spread = |a: &Array3<f32>| {
        let mut wide = Array3::zeros((a.dim().0, a.dim().1, 128));
        wide.slice_mut(s![..;-1, .., ..;2]).assign(a);
        wide
    };
    let (q2, k2, v2) = (spread(&q), spread(&k), spread(&v));
    let mut out2 = Array3::zeros((tokens, 9, 128));
    DenseAttention::new(shape, options.clone())
        .unwrap()
        .forward(
            q2.slice(s![..;-1, .., ..;2]),
            k2.slice(s![..;-1, .., ..;2]),
            v2.slice(s![..;-1, .., ..;2]),
            out2.slice_mut(s![.., .., ..;2]),
        )
        .unwrap();
    assert_eq!(out2.slice(s![.., .., ..;2]).as_standard_layout().as_slice().unwrap(), expected);
}

#[test]
fn rows_in_reverse_memory_order_are_rows() {
    use ndarray::{Array3, s};
    let (tokens, shape) = (20, smollm());
    let inputs = Inputs::new(shape, tokens, 7);
    let options = options(isa(), KvStore::F32);
    let expected = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]);
    let reversed = |data: &[f32], heads| {
        let array = Array3::from_shape_vec((tokens, heads, 64), data.to_vec()).unwrap();
        array.slice(s![..;-1, .., ..]).as_standard_layout().into_owned()
    };
    let (q, k, v) = (reversed(&inputs.q, 9), reversed(&inputs.k, 3), reversed(&inputs.v, 3));
    let mut out = Array3::zeros((tokens, 9, 64));
    DenseAttention::new(shape, options)
        .unwrap()
        .forward(
            q.slice(s![..;-1, .., ..]),
            k.slice(s![..;-1, .., ..]),
            v.slice(s![..;-1, .., ..]),
            out.slice_mut(s![..;-1, .., ..]),
        )
        .unwrap();
    assert_eq!(reversed(out.as_slice().unwrap(), 9).as_slice().unwrap(), expected);
}

#[test]
fn a_row_in_which_everything_far_is_skipped_is_the_window_alone() {
    let shape = AttentionShape::new(1, 1, 4).unwrap();
    let tokens = 40;
    // Far keys score -50, the query's own +50.
    let q = vec![10.0; tokens * 4];
    let mut k = vec![-2.5; tokens * 4];
    k[(tokens - 1) * 4..].fill(2.5);
    let v: Vec<f32> = (0..tokens * 4).map(|i| i as f32).collect();
    let inputs = Inputs { shape, tokens, q, k, v };
    let options = options(isa(), KvStore::F32);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.1))
        .exact_window(ExactWindow::Sliding(1))
        .exact_sinks(0)
        .skip_margin(SkipMargin::length(-1.0, 1.0));
    let mut kernel = HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
    inputs.run(&mut kernel, &[tokens - 1]);
    let before = kernel.stats().total().skipped_values;
    let out = inputs.run(&mut kernel, &[tokens]);
    assert_eq!(out, inputs.v[(tokens - 1) * 4..]);
    assert_eq!(kernel.stats().total().skipped_values - before, tokens as u64 - 1);
}

#[test]
fn equal_scores_and_denormals_are_ordinary() {
    let shape = AttentionShape::new(2, 1, 8).unwrap();
    let tokens = 70;
    for x in [0.0, 1e-40, 1e-20, 1.0, 1e3] {
        let inputs = Inputs {
            shape,
            tokens,
            q: vec![x; tokens * 16],
            k: vec![x; tokens * 8],
            v: vec![1.5; tokens * 8],
        };
        for isa in Isa::available() {
            let options = options(isa, KvStore::F32);
            let config = coded_at_once(ThresholdPolicy::Uniform(0.5));
            for kernel in [
                &mut DenseAttention::new(shape, options.clone()).unwrap() as &mut dyn AttentionKernel,
                &mut HybridAttention::new(shape, config.clone().options(options.clone())).unwrap(),
            ] {
                for y in inputs.run(kernel, &[tokens]) {
                    assert!((y - 1.5).abs() < 1e-5, "{isa} {x}: {y}");
                }
            }
        }
    }
}

#[test]
fn a_target_is_met_and_the_bound_of_the_moment_holds() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    let inputs = Inputs::new(shape, 700, 3);
    let policy = ThresholdPolicy::TargetSparsity(TargetSparsity::new(0.7));
    let mut kernel =
        HybridAttention::new(shape, coded_at_once(policy).options(options(isa(), KvStore::F32))).unwrap();
    inputs.run(&mut kernel, &[512, 700]);
    let zeros = kernel.stats().total().zero_fraction();
    assert!((zeros - 0.7).abs() <= 0.02, "{zeros}");
}

/// The last token alone, after all others in one call: decoding.
fn decoded(inputs: &Inputs, kernel: &mut dyn AttentionKernel) -> Vec<f32> {
    if inputs.tokens > 1 {
        inputs.run(kernel, &[inputs.tokens - 1]);
    }
    inputs.run(kernel, &[inputs.tokens])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(48)))]

    #[test]
    fn a_decoded_token_equals_the_reference(
        shape in shapes(), tokens in 1_usize..300, seed: u64, store in stores(&KvStore::ALL), theta in 0.0_f32..1.0,
        window in 1_usize..100, sinks in 0_usize..70, capped: bool,
    ) {
        let inputs = Inputs::new(shape, tokens, seed);
        let softcap = capped.then_some(3.0_f32);
        let (window, last) = (ExactWindow::Sliding(window), (tokens - 1) * inputs.q_row());
        let hybrid = Method {
            thresholds: thresholds(shape, theta), exact_window: Some(window), exact_sinks: sinks, store,
            softcap: softcap.map(f64::from), ..Method::dense(&shape)
        };
        let dense = Method { store, softcap: softcap.map(f64::from), ..Method::dense(&shape) };
        let config = coded_at_once(ThresholdPolicy::Uniform(theta)).exact_window(window).exact_sinks(sinks);
        let expected = inputs.reference(&hybrid).0;
        let expected_dense = DENSE.contains(&store).then(|| inputs.reference(&dense).0);
        for isa in Isa::available() {
            let options = options(isa, store).softcap(softcap);
            let mut kernel = HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
            assert_close(&decoded(&inputs, &mut kernel), &expected[last..], &format!("{isa}, {store}"));
            if let Some(expected) = &expected_dense {
                let mut kernel = DenseAttention::new(shape, options.clone()).unwrap();
                assert_close(&decoded(&inputs, &mut kernel), &expected[last..], &format!("dense, {isa}, {store}"));
            }
        }
    }
}

/// Lengths around the edges of the chunks (1024 keys of this shape) that long caches are cut into. Tiles know no chunks, and the
/// reference takes long for so many tokens.
#[test]
fn decoding_equals_prefill_around_the_edges_of_chunks() {
    let shape = AttentionShape::new(2, 1, 32).unwrap();
    for tokens in [1023, 1024, 1025, 1088, 2049] {
        let inputs = Inputs::new(shape, tokens, 13);
        for store in KvStore::ALL {
            for isa in Isa::available() {
                let options = options(isa, store);
                let config = coded_at_once(ThresholdPolicy::Uniform(0.3));
                let mut kernel =
                    HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
                let expected = inputs.run(&mut kernel, &[tokens]);
                // A margin that keeps all changes nothing.
                for skip_margin in [None, Some(SkipMargin::Fixed(1e4))] {
                    let config = config.clone().skip_margin(skip_margin);
                    let mut kernel =
                        HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
                    let got = decoded(&inputs, &mut kernel);
                    let what = format!("{store}, {isa}, {tokens} tokens, margin {skip_margin:?}");
                    same(&got, &expected[expected.len() - inputs.q_row()..], &what);
                    assert_eq!(kernel.stats().total().skipped_values, 0);
                }
            }
        }
    }
}

#[test]
fn every_group_and_head_is_decoded_at_every_isa() {
    for group in 1..=9 {
        for head_dim in [64, 80, 96, 128, 192, 7] {
            let shape = AttentionShape::new(group, 1, head_dim).unwrap();
            let inputs = Inputs::new(shape, 70, 14);
            for store in KvStore::ALL {
                let method = Method {
                    thresholds: thresholds(shape, 0.3),
                    exact_window: Some(ExactWindow::Sliding(20)),
                    exact_sinks: 3,
                    store,
                    ..Method::dense(&shape)
                };
                let (expected, _) = inputs.reference(&method);
                let config = coded_at_once(ThresholdPolicy::Uniform(0.3))
                    .exact_window(ExactWindow::Sliding(20))
                    .exact_sinks(3);
                for isa in Isa::available() {
                    let mut kernel =
                        HybridAttention::new(shape, config.clone().options(options(isa, store))).unwrap();
                    let what = format!("{store}, {isa}, {group} heads of {head_dim}");
                    let got = decoded(&inputs, &mut kernel);
                    assert_close(&got, &expected[expected.len() - inputs.q_row()..], &what);
                }
            }
        }
    }
}

/// All codes of the keys and of the queries are as large as they can be, and 1024 of their products are beyond 32 bits.
#[test]
fn integer_products_of_many_channels_do_not_overflow() {
    let shape = AttentionShape::new(1, 1, 1024).unwrap();
    let (mut k, tokens) = (vec![127.0; 3 * 1024], 3);
    k[1024 + 512..].fill(-127.0);
    let v = (0..tokens * 1024).map(|i| (i / 1024) as f32 - 1.0).collect();
    let inputs = Inputs { shape, tokens, q: vec![1e-3; tokens * 1024], k, v };
    let method =
        Method { thresholds: thresholds(shape, 1.0), store: KvStore::Compact, ..Method::dense(&shape) };
    let (expected, _) = inputs.reference(&method);
    for isa in Isa::available() {
        let options = options(isa, KvStore::Compact);
        let mut kernel = DeltaAttention::new(shape, ThresholdPolicy::Uniform(1.0), 0, options).unwrap();
        assert_close(&inputs.run(&mut kernel, &[1, 2, 3]), &expected, isa.name());
    }
}

#[test]
fn decoding_a_long_cache_does_not_depend_on_the_number_of_threads() {
    let tokens = 2100;
    let shape = AttentionShape::new(6, 2, 64).unwrap();
    let inputs = Inputs::new(shape, tokens, 15);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4)).skip_margin(SkipMargin::Fixed(2.0));
    for store in KvStore::ALL {
        let options = |parallel| options(isa(), store).parallel(parallel);
        let hybrid =
            |parallel| HybridAttention::new(shape, config.clone().options(options(parallel))).unwrap();
        equal_on_any_number_of_threads(&inputs, &mut hybrid(false), &mut hybrid(true));
        if DENSE.contains(&store) {
            let dense = |parallel| DenseAttention::new(shape, options(parallel)).unwrap();
            equal_on_any_number_of_threads(&inputs, &mut dense(false), &mut dense(true));
        }
    }
}

/// The last token decoded on one thread, on the threads at hand and, taking it back each time, on 1, 2 and 3.
fn equal_on_any_number_of_threads<K: AttentionKernel>(inputs: &Inputs, serial: &mut K, parallel: &mut K) {
    let expected = decoded(inputs, serial);
    assert_eq!(decoded(inputs, parallel), expected);
    assert_eq!(parallel.stats(), serial.stats());
    #[cfg(feature = "rayon")]
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        parallel.truncate(inputs.tokens - 1).unwrap();
        let answer = pool.install(|| inputs.run(parallel, &[inputs.tokens]));
        assert_eq!(answer, expected, "{threads} threads");
    }
}

#[test]
fn a_token_whose_scores_leave_f32_is_refused_and_others_are_not() {
    let shape = AttentionShape::new(2, 1, 64).unwrap();
    for (size, fits) in [(1e-30_f32, true), (1e10, true), (1e25, false)] {
        let mut inputs = Inputs::new(shape, 80, 16);
        inputs.q.iter_mut().for_each(|q| *q *= size);
        inputs.k.iter_mut().for_each(|k| *k *= size);
        for isa in Isa::available() {
            for store in [KvStore::F32, KvStore::Bf16, KvStore::Compact] {
                let policy = ThresholdPolicy::Uniform(0.3 * size);
                // The exact window of the compact store is f16.
                let mut kernel = match store {
                    KvStore::Compact => {
                        DeltaAttention::new(shape, policy, 0, options(isa, store)).map(|k| Box::new(k) as _)
                    }
                    _ => DenseAttention::new(shape, options(isa, store)).map(|k| Box::new(k) as _),
                }
                .unwrap();
                let kernel: &mut Box<dyn AttentionKernel> = &mut kernel;
                for token in 0..80 {
                    let mut out = vec![0.0; inputs.q_row()];
                    let view = HeadsViewMut::new(&mut out, [1, 2, 64]).unwrap();
                    let (k, v) =
                        (inputs.kv(&inputs.k, token..token + 1), inputs.kv(&inputs.v, token..token + 1));
                    match kernel.forward_heads(inputs.q(token..token + 1), k, v, view) {
                        Ok(()) => {
                            assert!(fits && out.iter().all(|x| x.abs() <= 1.2), "{isa}, {store}, {size}")
                        }
                        Err(AttentionError::Overflow) => assert!(!fits, "{isa}, {store}, {size}"),
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }
}

proptest! {
    // The portable loops of 16-bit products are slow.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(12)))]

    #[test]
    fn sixteen_bits_come_near_to_the_reference(
        shape in shapes(), tokens in 1_usize..300, seed: u64, theta in 0.0_f32..0.6, window in 1_usize..100,
        margin in prop::option::of(3.0_f32..6.0), capped: bool,
    ) {
        let inputs = Inputs::new(shape, tokens, seed);
        let softcap = capped.then_some(3.0_f32);
        let dense = Method { softcap: softcap.map(f64::from), ..Method::dense(&shape) };
        let hybrid = |moved: f32| Method {
            thresholds: thresholds(shape, theta), exact_window: Some(ExactWindow::Sliding(window)), exact_sinks: 3,
            skip_margin: margin.map(|margin| SkipMargin::Fixed(margin + moved)),
            ..dense.clone()
        }.in_calls_of(tokens, &shape);
        let config = coded_at_once(ThresholdPolicy::Uniform(theta))
            .exact_window(ExactWindow::Sliding(window)).exact_sinks(3).skip_margin(margin.map(SkipMargin::Fixed));
        let exact = inputs.reference(&dense).0;
        // How far outputs are off, and scores.
        for (precision, tolerance, by) in [(Precision::Int16, 4e-3, 2e-3), (Precision::Bf16, 6e-2, 3e-2)] {
            // A score that is off may put a value on the other side of the margin: of queries of which that can be nothing is known.
            let [fewer, more] = [-by, by].map(|by| inputs.reference(&hybrid(by)).0);
            let rows = || fewer.chunks(inputs.q_row()).zip(more.chunks(inputs.q_row()));
            let clear = rows().filter(|(fewer, more)| fewer == more).count();
            prop_assume!(2 * clear >= tokens);
            for isa in Isa::available() {
                let options = options(isa, KvStore::F32).softcap(softcap).precision(precision);
                let dense = inputs.run(&mut DenseAttention::new(shape, options.clone()).unwrap(), &[tokens]);
                prop_assert!(worst(&dense, &exact) <= tolerance, "{} {:?}: off by {:e}", isa, precision, worst(&dense, &exact));
                let hybrid = inputs.run(&mut HybridAttention::new(shape, config.clone().options(options.clone())).unwrap(), &[tokens]);
                for (got, (expected, _)) in hybrid.chunks(inputs.q_row()).zip(rows()).filter(|(_, (fewer, more))| fewer == more) {
                    let worst = worst(got, expected);
                    prop_assert!(worst <= tolerance, "{} {:?}: off by {:e}", isa, precision, worst);
                }
            }
        }
    }
}

/// Window and sinks have exact values, and the far keys those of the store, of the same tokens.
#[test]
fn products_of_sixteen_bits_take_the_values_of_each_segment() {
    let shape = AttentionShape::new(2, 1, 16).unwrap();
    let inputs = Inputs::new(shape, 100, 12);
    let config =
        coded_at_once(ThresholdPolicy::Uniform(0.3)).exact_window(ExactWindow::Sliding(9)).exact_sinks(3);
    let method = |store| Method {
        thresholds: thresholds(shape, 0.3),
        exact_window: Some(ExactWindow::Sliding(9)),
        exact_sinks: 3,
        store,
        ..Method::dense(&shape)
    };
    for store in [KvStore::Int8, KvStore::Compact] {
        let (expected, _) = inputs.reference(&method(store));
        for isa in Isa::available() {
            let config = config.clone().options(options(isa, store).precision(Precision::Int16));
            let mut kernel = HybridAttention::new(shape, config).unwrap();
            let worst = worst(&inputs.run(&mut kernel, &[100]), &expected);
            assert!(worst <= 4e-3, "{isa} {store}: off by {worst:e}");
        }
    }
}

#[test]
fn f32_takes_the_place_of_a_precision_that_a_level_lacks() {
    let inputs = Inputs::new(smollm(), 150, 4);
    let config = coded_at_once(ThresholdPolicy::Uniform(0.4))
        .exact_window(ExactWindow::Sliding(9))
        .skip_margin(SkipMargin::Fixed(3.0));
    for simd in Isa::available() {
        let run = |precision| {
            let options = options(simd, KvStore::F32).precision(precision);
            inputs.run(
                &mut HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap(),
                &[150],
            )
        };
        let f32s = run(Precision::F32);
        for precision in [Precision::Bf16, Precision::Int16] {
            assert_eq!(run(precision) == f32s, !precision.is_multiplied_by(simd), "{simd} {precision}");
        }
        assert!(!cfg!(target_arch = "x86_64") || !Precision::Bf16.is_multiplied_by(simd), "{simd}");
    }
}

#[test]
fn channels_that_no_byte_can_number_are_attended_as_rows() {
    for head_dim in [256, 257, 300] {
        let shape = AttentionShape::new(2, 1, head_dim).unwrap();
        let inputs = Inputs::new(shape, 150, 3);
        for skip_margin in [None, Some(SkipMargin::Fixed(3.0))] {
            let window = ExactWindow::Sliding(9);
            let method = Method {
                thresholds: thresholds(shape, 0.4),
                exact_window: Some(window),
                exact_sinks: 2,
                skip_margin,
                ..Method::dense(&shape)
            };
            let (expected, _) = inputs.reference(&method.in_calls_of(150, &shape));
            let config = coded_at_once(ThresholdPolicy::Uniform(0.4))
                .exact_window(window)
                .exact_sinks(2)
                .skip_margin(skip_margin);
            for isa in Isa::available() {
                for (precision, tolerance) in
                    [(Precision::F32, 1e-4), (Precision::Int16, 0.02), (Precision::Bf16, 0.2)]
                {
                    let options = options(isa, KvStore::F32).precision(precision);
                    // In one call, and in calls of one tile.
                    for ends in [vec![150], (1..=15).map(|i| i * 10).collect()] {
                        let mut kernel =
                            HybridAttention::new(shape, config.clone().options(options.clone())).unwrap();
                        let calls = ends.len();
                        if calls > 1 && skip_margin.is_some() {
                            continue;
                        }
                        let worst = worst(&inputs.run(&mut kernel, &ends), &expected);
                        assert!(worst <= tolerance, "{isa} {precision:?} {head_dim} in {calls}: {worst:e}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_short_prompt_is_exact_and_what_follows_is_not() {
    let (prompt, tokens) = (100, 130);
    let inputs = Inputs::new(smollm(), tokens, 5);
    let window = ExactWindow::Sliding(9);
    let method = Method {
        thresholds: thresholds(smollm(), 0.6),
        exact_window: Some(window),
        exact_sinks: 2,
        exact_until: prompt,
        ..Method::dense(&smollm())
    };
    let (expected, _) = inputs.reference(&method);
    let options = options(isa(), KvStore::F32);
    let config =
        coded_at_once(ThresholdPolicy::Uniform(0.6)).exact_window(window).exact_sinks(2).exact_prompt(prompt);
    let one_by_one: Vec<usize> = (prompt..=tokens).collect();
    let in_chunks: Vec<usize> = [31, 32, 64].into_iter().chain(prompt..=tokens).collect();
    let mut bytes = Vec::new();
    for ends in [one_by_one, in_chunks] {
        let mut kernel = HybridAttention::new(smollm(), config.clone().options(options.clone())).unwrap();
        kernel.begin_prompt(prompt);
        assert_close(&inputs.run(&mut kernel, &ends), &expected, "short prompt");
        let counts = kernel.stats().total();
        let exact = prompt * (prompt + 1) / 2 + (tokens - prompt) * (9 + 2);
        assert_eq!(counts.exact_pairs, (exact * smollm().heads()) as u64);
        bytes.push(kernel.footprint().total());
    }
    assert_eq!(bytes[0], bytes[1]);

    // A longer prompt is not exact, and neither does a short one cost memory once it is over.
    let plain = config.exact_prompt(prompt - 1);
    let mut kernel = HybridAttention::new(smollm(), plain.clone().options(options.clone())).unwrap();
    kernel.begin_prompt(prompt);
    let out = inputs.run(&mut kernel, &(prompt..=tokens).collect::<Vec<_>>());
    let method = Method { exact_until: 0, ..method };
    assert_close(&out, &inputs.reference(&method).0, "long prompt");
    assert_eq!(kernel.footprint().total(), bytes[0]);
}
