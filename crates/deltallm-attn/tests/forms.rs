//! What today's models ask of attention besides the usual: sink logits, values of another width, log-sum-exp, layers that share a
//! cache, large heads and groups of all sizes.

use std::sync::Arc;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, Half, HeadsView, HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, Mask, Precision,
    SkipMargin, ThresholdPolicy, forward_batch, forward_half,
    reference::{Attended, Method},
};
use proptest::prelude::*;

mod common;

use common::{Inputs, isa, kernels, options, worst};

const TOLERANCE: f64 = 2e-5;

fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let worst = worst(got, expected);
    assert!(worst <= tolerance, "{what}: off by {worst:e}");
}

/// Thresholds of `theta`, a window of 20 keys, 2 sinks.
fn hybrid(theta: f32, options: AttentionOptions) -> HybridConfig {
    let config = HybridConfig::new(ThresholdPolicy::Uniform(theta))
        .exact_window(ExactWindow::Sliding(20))
        .exact_sinks(2);
    config.codes_from(0).options(options)
}

fn hybrid_method(theta: f32, method: &Method, shape: AttentionShape) -> Method {
    let thresholds = Some(vec![vec![theta; shape.head_dim()]; shape.kv_heads()]);
    Method { thresholds, exact_window: Some(ExactWindow::Sliding(20)), exact_sinks: 2, ..method.clone() }
}

/// Runs a kernel, in calls that end at `ends`, and compares outputs and, where they are kept, log-sums.
fn check(kernel: &mut dyn AttentionKernel, inputs: &Inputs, ends: &[usize], expected: &Attended, what: &str) {
    let mut log_sums = Vec::new();
    let out: Vec<f32> = ends
        .iter()
        .flat_map(|end| {
            let out = inputs.call(kernel, *end).unwrap();
            log_sums.extend_from_slice(kernel.log_sum_exp().unwrap_or_default());
            out
        })
        .collect();
    assert_close(&out, &expected.out, TOLERANCE, what);
    if !log_sums.is_empty() {
        assert_close(&log_sums, &expected.log_sums, 1e-4, what);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(32)))]

    #[test]
    fn sink_logits_values_of_any_width_and_log_sums_equal_the_reference(
        group in 1_usize..6, kv_heads in 1_usize..3, head_dim in prop_oneof![Just(64_usize), Just(48), 1_usize..20],
        value_dim in prop_oneof![Just(32_usize), Just(96), 1_usize..20], tokens in 1_usize..250, seed: u64,
        store in prop::sample::select(&KvStore::ALL[..]), logits in prop::option::of(prop::collection::vec(-4.0_f32..6.0, 12)),
        capped: bool, window in prop::option::of(1_usize..200), cut in 1_usize..250, theta in 0.0_f32..0.8,
    ) {
        let heads = group * kv_heads;
        let shape = AttentionShape::new(heads, kv_heads, head_dim).unwrap().with_value_dim(value_dim).unwrap();
        let inputs = Inputs::new(shape, tokens, seed);
        let logits = logits.map(|logits| logits[..heads].to_vec());
        let softcap = capped.then_some(3.0_f32);
        let mask = window.map_or(Mask::Causal, Mask::SlidingWindow);
        let method = Method {
            store, mask, softcap: softcap.map(f64::from),
            sink_logits: logits.as_ref().map(|logits| logits.iter().copied().map(f64::from).collect()),
            ..Method::dense(&shape)
        };
        let ends = [cut.min(tokens), tokens];
        let ends = if ends[0] == tokens { &ends[1..] } else { &ends };
        let dense = inputs.attended(&Method { store: store.dense(), ..method.clone() });
        let far = hybrid_method(theta, &method, shape);
        // A mask no wider than the window leaves nothing to code.
        let whole = store.is_quantised() && window.is_some_and(|window| window <= 20);
        let far = inputs.attended(&Method { exact_until: if whole { usize::MAX } else { 0 }, ..far });
        let delta = Method { thresholds: Some(vec![vec![theta; head_dim]; kv_heads]), ..method.clone() };
        let delta = inputs.attended(&delta);
        for isa in Isa::available() {
            let options = AttentionOptions::default().isa(isa).store(store).mask(mask).softcap(softcap).log_sum_exp(true);
            let options = options.sink_logits(logits.as_ref().map(|logits| Arc::from(&logits[..])));
            let mut kernel = DenseAttention::new(shape, options.clone().store(store.dense())).unwrap();
            check(&mut kernel, &inputs, ends, &dense, &format!("dense, {isa}"));
            if store.is_delta() {
                let policy = ThresholdPolicy::Uniform(theta);
                let mut kernel = DeltaAttention::new(shape, policy, 0, options.clone()).unwrap();
                check(&mut kernel, &inputs, ends, &delta, &format!("delta, {isa}"));
            }
            let mut kernel = HybridAttention::new(shape, hybrid(theta, options)).unwrap();
            check(&mut kernel, &inputs, ends, &far, &format!("hybrid, {isa}"));
        }
    }

    #[test]
    fn skipping_beside_a_cap_and_sink_logits_equals_the_reference(
        group in 1_usize..5, tokens in 2_usize..250, seed: u64, margin in 0.5_f32..4.0, capped: bool,
        logits in prop::collection::vec(-2.0_f32..8.0, 4), one_by_one: bool,
    ) {
        let shape = AttentionShape::new(group, 1, 32).unwrap();
        let inputs = Inputs::new(shape, tokens, seed);
        let softcap = capped.then_some(2.5_f32);
        let method = |margin| Method {
            softcap: softcap.map(f64::from),
            sink_logits: Some(logits[..group].iter().copied().map(f64::from).collect()),
            skip_margin: Some(SkipMargin::Fixed(margin)), ..hybrid_method(0.4, &Method::dense(&shape), shape)
        }.in_calls_of(if one_by_one { 1 } else { tokens }, &shape);
        let expected = inputs.attended(&method(margin));
        // A score within rounding of the margin may fall on either side: such inputs prove nothing.
        prop_assume!([-1e-4, 1e-4].iter().all(|by| inputs.attended(&method(margin + by)).skipped == expected.skipped));
        let ends: Vec<usize> = if one_by_one { (1..=tokens).collect() } else { vec![tokens] };
        for isa in Isa::available() {
            let options = AttentionOptions::default().isa(isa).store(KvStore::F32).softcap(softcap).log_sum_exp(true);
            let options = options.sink_logits(Arc::from(&logits[..group]));
            let config = hybrid(0.4, options).skip_margin(SkipMargin::Fixed(margin));
            let mut kernel = HybridAttention::new(shape, config).unwrap();
            check(&mut kernel, &inputs, &ends, &expected, isa.name());
            prop_assert_eq!(kernel.stats().total().skipped_values, expected.skipped);
        }
    }
}

/// Head sizes and groups of published models, and latent attention.
#[test]
fn heads_and_groups_of_all_published_sizes_equal_the_reference() {
    let sizes = [64, 80, 96, 112, 128, 192, 256, 512];
    let shapes = [1, 3, 8].map(|group| sizes.map(|head_dim| (group, head_dim, head_dim)));
    let groups = (2..=7).chain([12, 16, 32]).flat_map(|group| [64, 128].map(|size| (group, size, size)));
    for (group, head_dim, value_dim) in
        shapes.into_iter().flatten().chain(groups).chain([(16, 192, 128), (16, 576, 512)])
    {
        let shape = AttentionShape::new(group, 1, head_dim).unwrap().with_value_dim(value_dim).unwrap();
        let inputs = Inputs::new(shape, 150, 1);
        let method = Method { store: KvStore::F16, ..Method::dense(&shape) };
        let dense = inputs.attended(&method);
        let far = inputs.attended(&hybrid_method(0.3, &method, shape));
        let compact = Method { store: KvStore::Compact, ..hybrid_method(0.3, &method, shape) };
        let compact = inputs.attended(&compact);
        for isa in Isa::available() {
            let what = format!("{group} heads of {head_dim} and {value_dim}, {isa}");
            let options = AttentionOptions::default().isa(isa);
            let (prompt, decoded) = ([150], [149, 150]);
            for ends in [&prompt[..], &decoded] {
                let mut kernel = DenseAttention::new(shape, options.clone()).unwrap();
                check(&mut kernel, &inputs, ends, &dense, &what);
                let mut kernel = HybridAttention::new(shape, hybrid(0.3, options.clone())).unwrap();
                check(&mut kernel, &inputs, ends, &far, &what);
                let options = options.clone().store(KvStore::Compact);
                let mut kernel = HybridAttention::new(shape, hybrid(0.3, options)).unwrap();
                check(&mut kernel, &inputs, ends, &compact, &what);
            }
            // In 16 bits the products are rounded.
            let options = options.clone().precision(Precision::Int16);
            let mut kernel = DenseAttention::new(shape, options).unwrap();
            assert_close(&inputs.run(&mut kernel, &[150]), &dense.out, 2e-3, &what);
        }
    }
}

#[test]
fn parts_of_the_keys_merge_by_their_log_sums() {
    let shape = AttentionShape::new(2, 1, 32).unwrap();
    let inputs = Inputs::new(shape, 101, 2);
    let all = inputs.attended(&Method::dense(&shape));
    // One kernel has the first 60 tokens, the other the rest; both answer the last query.
    let parts = [0..60, 60..101].map(|tokens| {
        let mut kernel = DenseAttention::new(shape, options().log_sum_exp(true)).unwrap();
        let mut out = vec![0.0; 64];
        let (k, v) = (inputs.kv(&inputs.k, tokens.clone()), inputs.kv(&inputs.v, tokens));
        let view = HeadsViewMut::new(&mut out, [1, 2, 32]).unwrap();
        kernel.forward_heads(inputs.q(100..101), k, v, view).unwrap();
        (out, kernel.log_sum_exp().unwrap().to_vec())
    });
    let mut merged = Vec::new();
    for head in 0..2 {
        let [a, b] = [0, 1].map(|part| f64::from(parts[part].1[head]).exp());
        for channel in head * 32..(head + 1) * 32 {
            let [x, y] = [0, 1].map(|part| f64::from(parts[part].0[channel]));
            merged.push(((a * x + b * y) / (a + b)) as f32);
        }
    }
    assert_close(&merged, &all.out[100 * 64..], TOLERANCE, "two parts");
    let kernel = DenseAttention::new(shape, options()).unwrap();
    assert!(kernel.log_sum_exp().is_none(), "nobody asked");
}

/// Attends the last `queries` tokens of the cache, and appends nothing.
fn attend_again(
    kernel: &mut dyn AttentionKernel,
    inputs: &Inputs,
    queries: usize,
) -> Result<Vec<f32>, AttentionError> {
    let len = kernel.len();
    let mut out = vec![0.0; queries * inputs.q_row()];
    let nothing = inputs.kv(&inputs.k, 0..0);
    let shape = [queries, inputs.shape.heads(), inputs.shape.head_dim()];
    let first = len.saturating_sub(queries);
    kernel.forward_heads(
        inputs.q(first..first + queries),
        nothing,
        nothing,
        HeadsViewMut::new(&mut out, shape)?,
    )?;
    Ok(out)
}

#[test]
fn a_layer_can_attend_to_the_cache_of_another_one() {
    let shape = AttentionShape::new(4, 2, 32).unwrap();
    let inputs = Inputs::new(shape, 500, 3);
    for mask in [Mask::Causal, Mask::SlidingWindow(100)] {
        for mut kernel in kernels(shape, &options().mask(mask), 0.3) {
            inputs.run(&mut *kernel, &[400]);
            // Within a step nothing has been let go: the queries of the call see what they saw in it.
            kernel.begin_step();
            let out = inputs.call(&mut *kernel, 450).unwrap();
            let held = kernel.footprint();
            assert_eq!(attend_again(&mut *kernel, &inputs, 50).unwrap(), out, "{mask}");
            assert_eq!((kernel.len(), kernel.footprint()), (450, held));
            kernel.commit_step();
            // Then the last query still does.
            let last = attend_again(&mut *kernel, &inputs, 1).unwrap();
            assert!(
                out[49 * inputs.q_row()..].iter().zip(&last).all(|(a, b)| (a - b).abs() < 1e-5),
                "{mask}"
            );
            let error = attend_again(&mut *kernel, &inputs, 451).unwrap_err();
            assert!(matches!(error, AttentionError::Shape { input: "q", got: 451, .. }), "{error}");
            if mask != Mask::Causal {
                let error = attend_again(&mut *kernel, &inputs, 200).unwrap_err();
                assert!(
                    matches!(error, AttentionError::Shape { input: "q", expected: 1..=113, .. }),
                    "{error}"
                );
            }
            assert_eq!(kernel.len(), 450, "nothing is lost");
            inputs.call(&mut *kernel, 500).unwrap();
        }
    }
}

#[test]
fn the_last_query_sees_again_what_it_saw_whatever_is_dropped_behind_it() {
    let shape = AttentionShape::new(2, 1, 16).unwrap();
    let inputs = Inputs::new(shape, 200, 6);
    for mask in [Mask::SlidingWindow(3), Mask::SlidingWindow(70), Mask::Chunked(5), Mask::Chunked(64)] {
        for store in KvStore::ALL {
            for sinks in [0, 1, 4, 70] {
                let options = options().mask(mask).store(store);
                let config =
                    HybridConfig::new(ThresholdPolicy::Uniform(0.3)).exact_sinks(sinks).options(options);
                let config = config.exact_window(ExactWindow::Sliding(2)).codes_from(0);
                let mut kernel = HybridAttention::new(shape, config).unwrap();
                for end in 1..=200 {
                    let out = inputs.call(&mut kernel, end).unwrap();
                    let again = attend_again(&mut kernel, &inputs, 1).unwrap();
                    assert!(
                        out.iter().zip(&again).all(|(a, b)| (a - b).abs() < 0.5),
                        "{mask}, {store}, {sinks} sinks, {end} tokens: {out:?} {again:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn queries_that_see_no_exact_key_keep_all_they_see() {
    let shape = AttentionShape::new(4, 1, 32).unwrap();
    let inputs = Inputs::new(shape, 200, 8);
    for isa in Isa::available() {
        for store in [KvStore::F32, KvStore::F16, KvStore::Compact] {
            for (len, queries) in [(200, 200), (96, 16), (96, 80)] {
                let config = HybridConfig::new(ThresholdPolicy::Uniform(0.1))
                    .exact_window(ExactWindow::Sliding(64))
                    .exact_sinks(0)
                    .codes_from(0)
                    .skip_margin(SkipMargin::Fixed(30.0))
                    .options(options().isa(isa).store(store));
                let mut kernel = HybridAttention::new(shape, config).unwrap();
                let first = inputs.run(&mut kernel, &[200]);
                kernel.truncate(len).unwrap();
                // Some of these come before all exact keys that are left.
                let again = attend_again(&mut kernel, &inputs, queries).unwrap();
                let row = inputs.q_row();
                let expected = &first[(len - queries) * row..len * row];
                let off = again.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 0.5, "{isa}, {store}, {len}, {queries}: off by {off}");
            }
        }
    }
}

#[test]
fn a_batch_is_its_sequences_one_by_one() {
    let shape = AttentionShape::new(4, 2, 16).unwrap().with_value_dim(24).unwrap();
    let inputs = Inputs::new(shape, 100, 4);
    let (prompts, lengths) = ([0, 3, 40, 1], [1, 7, 30, 62]);
    let make = || prompts.map(|_| DenseAttention::new(shape, options()).unwrap());
    let (mut together, mut alone) = (make(), make());
    for ((a, b), prompt) in together.iter_mut().zip(&mut alone).zip(prompts).filter(|(_, prompt)| *prompt > 0)
    {
        assert_eq!(inputs.call(a, prompt).unwrap(), inputs.call(b, prompt).unwrap());
    }
    let (heads, channels) = (shape.heads(), shape.value_dim());
    let (mut expected, mut start) = (Vec::new(), 0);
    for (kernel, length) in alone.iter_mut().zip(lengths) {
        let tokens = start..start + length;
        start += length;
        let mut out = vec![0.0; length * heads * channels];
        let (k, v) = (inputs.kv(&inputs.k, tokens.clone()), inputs.kv(&inputs.v, tokens.clone()));
        let view = HeadsViewMut::new(&mut out, [length, heads, channels]).unwrap();
        kernel.forward_heads(inputs.q(tokens), k, v, view).unwrap();
        expected.extend(out);
    }
    let (q, k, v) = (inputs.q(0..100), inputs.kv(&inputs.k, 0..100), inputs.kv(&inputs.v, 0..100));
    let mut batch = |lengths: &[usize], out: HeadsViewMut| {
        let [a, b, c, d] = &mut together;
        forward_batch(&mut [a, b, c, d], lengths, q, k, v, out)
    };
    // A sequence may have no tokens.
    let (empty, view) = (HeadsView::new(&[], [0, 2, 16]).unwrap(), HeadsView::new(&[], [0, 2, 24]).unwrap());
    let queries = HeadsView::new(&[], [0, 4, 16]).unwrap();
    let nothing = HeadsViewMut::new(&mut [], [0, 4, 24]).unwrap();
    forward_batch(&mut [&mut make()[0]], &[0], queries, empty, view, nothing).unwrap();
    let mut out = vec![0.0; 100 * heads * channels];
    for wrong in [&[1, 7, 30, 63][..], &[100], &[usize::MAX, 1, 1, 1]] {
        let view = HeadsViewMut::new(&mut out, [100, heads, channels]).unwrap();
        assert!(matches!(batch(wrong, view), Err(AttentionError::Shape { .. })), "{wrong:?}");
    }
    // Results of one head after the other lie between each other.
    let mut by_head = vec![0.0; 100 * heads * channels];
    let view = HeadsViewMut::strided(&mut by_head, [100, heads, channels], channels, 100 * channels).unwrap();
    batch(&lengths, view).unwrap();
    for (token, row) in expected.chunks_exact(heads * channels).enumerate() {
        for (head, row) in row.chunks_exact(channels).enumerate() {
            assert_eq!(&by_head[(head * 100 + token) * channels..][..channels], row);
        }
    }
    assert_eq!(together.each_ref().map(|kernel| kernel.len()), [1, 10, 70, 63]);
    for (kernel, prompt) in together.iter_mut().zip(prompts) {
        kernel.truncate(prompt).unwrap();
    }
    let [a, b, c, d] = &mut together;
    let view = HeadsViewMut::new(&mut out, [100, heads, channels]).unwrap();
    forward_batch(&mut [a, b, c, d], &lengths, q, k, v, view).unwrap();
    assert_eq!(out, expected);
}

#[test]
fn sixteen_bits_come_in_and_go_out() {
    fn check<T: Half>(from: fn(f32) -> T, to: fn(T) -> f32, step: f32) {
        let shape = AttentionShape::new(4, 2, 16).unwrap();
        let inputs = Inputs::new(shape, 70, 5);
        // The same numbers in both.
        let narrow = |numbers: &[f32]| numbers.iter().map(|x| from(*x)).collect::<Vec<T>>();
        let (q, k, v) = (narrow(&inputs.q), narrow(&inputs.k), narrow(&inputs.v));
        let wide = |numbers: &[T]| numbers.iter().map(|x| to(*x)).collect::<Vec<f32>>();
        let rounded = Inputs { q: wide(&q), k: wide(&k), v: wide(&v), ..inputs };
        for mut kernel in kernels(shape, &options(), 0.3) {
            let mut out = vec![from(0.0); 70 * 64];
            let [k, v] = [&k, &v].map(|numbers| HeadsView::new(numbers, [70, 2, 16]).unwrap());
            let q = HeadsView::strided(&q, [70, 4, 16], 64, 16).unwrap();
            let view = HeadsViewMut::strided(&mut out, [70, 4, 16], 16, 70 * 16).unwrap();
            forward_half(&mut *kernel, q, k, v, view).unwrap();
            kernel.truncate(0).unwrap();
            for (token, row) in rounded.run(&mut *kernel, &[70]).chunks_exact(64).enumerate() {
                for (head, row) in row.chunks_exact(16).enumerate() {
                    let got = wide(&out[(head * 70 + token) * 16..][..16]);
                    assert!(got.iter().zip(row).all(|(a, b)| (a - b).abs() <= step * b.abs().max(0.1)));
                }
            }
        }
    }
    check(half::f16::from_f32, half::f16::to_f32, 1.0 / 2048.0);
    check(half::bf16::from_f32, half::bf16::to_f32, 1.0 / 256.0);
}

#[test]
fn sink_logits_and_widths_that_do_not_fit_are_refused() {
    let shape = AttentionShape::new(2, 1, 8).unwrap();
    let refused = |logits: Vec<f32>| {
        DenseAttention::new(shape, options().sink_logits(Arc::from(logits))).unwrap_err().to_string()
    };
    assert_eq!(refused(vec![0.0; 3]), "sink logits: expected heads = 2, got 3");
    assert_eq!(refused(vec![0.0, f32::NAN]), "sink logits: expected finite numbers, got NaN");
    assert!(shape.with_value_dim(0).is_err() && shape.with_value_dim(usize::MAX).is_err());
    let wide = shape.with_value_dim(16).unwrap();
    let mut kernel = DenseAttention::new(wide, AttentionOptions::default().isa(isa())).unwrap();
    let (q, k, mut out) = ([0.0; 16], [0.0; 8], [0.0; 32]);
    let (q, k) = (HeadsView::new(&q, [1, 2, 8]).unwrap(), HeadsView::new(&k, [1, 1, 8]).unwrap());
    let error = kernel.forward_heads(q, k, k, HeadsViewMut::new(&mut out, [1, 2, 16]).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "v: expected head_dim = 16, got 8");
}
