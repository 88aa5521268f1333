//! Every kind of bad input by name: a typed error that says what was expected and got, and a cache that is as before.

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionShape, DeltaAttention, DenseAttention,
    ExactWindow, HeadsView, HeadsViewMut, HybridAttention, HybridConfig, Isa, KvStore, Mask, MemoryBudget,
    PaperRule, Precision, SkipMargin, ThresholdPolicy, attend_dense, calibration::RateCurves, forward_batch,
    forward_half, forward_one_by_one,
};
use deltallm_core::{CachePlan, CoreError, KeyPlan, ModelFingerprint, ThresholdProfile};
use half::f16;
use ndarray::{Array3, arr0, s};

mod common;

use common::options;

const SHAPE: [usize; 3] = [4, 2, 8];

fn shape() -> AttentionShape {
    let [heads, kv_heads, head_dim] = SHAPE;
    AttentionShape::new(heads, kv_heads, head_dim).unwrap()
}

fn kernels(options: &AttentionOptions) -> Vec<Box<dyn AttentionKernel>> {
    common::kernels(shape(), options, 0.1)
}

type Dims = (usize, usize, usize);

/// A forward call with arrays of these dimensions, filled with a smooth pattern.
fn forward(
    kernel: &mut dyn AttentionKernel,
    q: Dims,
    k: Dims,
    v: Dims,
    out: Dims,
) -> Result<Array3<f32>, AttentionError> {
    let fill = |dims| Array3::from_shape_fn(dims, |(t, h, j)| ((t * 7 + h * 3 + j) % 11) as f32 * 0.1);
    let mut result = Array3::zeros(out);
    kernel.forward(fill(q).view(), fill(k).view(), fill(v).view(), result.view_mut())?;
    Ok(result)
}

#[test]
fn wrong_shapes_are_refused_dimension_by_dimension() {
    let good = [(3, 4, 8), (3, 2, 8), (3, 2, 8), (3, 4, 8)];
    for mut kernel in kernels(&options()) {
        for (argument, input) in ["q", "k", "v", "out"].iter().enumerate() {
            for dimension in 0..3 {
                let mut dims = good;
                match dimension {
                    0 => dims[argument].0 += 1,
                    1 => dims[argument].1 += 1,
                    _ => dims[argument].2 += 1,
                }
                let error = forward(&mut *kernel, dims[0], dims[1], dims[2], dims[3]).unwrap_err();
                let name = ["tokens", "heads", "head_dim"][dimension];
                match error {
                    AttentionError::Shape { dimension, expected, got, .. } => {
                        assert!(dimension.starts_with(name), "{input}: {dimension}");
                        assert_ne!(expected, got);
                    }
                    other => panic!("{input} {name}: {other}"),
                }
                assert_eq!(kernel.len(), 0);
            }
        }
        forward(&mut *kernel, good[0], good[1], good[2], good[3]).unwrap();
    }
}

#[test]
fn zero_tokens_are_refused() {
    for mut kernel in kernels(&options()) {
        let error = forward(&mut *kernel, (0, 4, 8), (0, 2, 8), (0, 2, 8), (0, 4, 8)).unwrap_err();
        assert_eq!(error.to_string(), "q: expected tokens = 1, got 0");
    }
}

#[test]
fn nan_and_infinity_are_refused_and_the_cache_stays() {
    for mut kernel in kernels(&options()) {
        forward(&mut *kernel, (3, 4, 8), (3, 2, 8), (3, 2, 8), (3, 4, 8)).unwrap();
        let footprint = kernel.footprint();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for argument in 0..3 {
                let mut arrays =
                    [(2, 4, 8), (2, 2, 8), (2, 2, 8)].map(|dims: Dims| Array3::from_elem(dims, 0.5));
                arrays[argument][[1, 1, 5]] = bad;
                let mut out = Array3::zeros((2, 4, 8));
                let [q, k, v] = &arrays;
                let error = kernel.forward(q.view(), k.view(), v.view(), out.view_mut()).unwrap_err();
                match error {
                    AttentionError::NotFinite { input, token: 1, head: 1, channel: 5, .. } => {
                        assert_eq!(input, ["q", "k", "v"][argument]);
                    }
                    other => panic!("{other}"),
                }
                assert_eq!((kernel.len(), kernel.footprint()), (3, footprint));
            }
        }
    }
}

#[test]
fn numbers_too_large_for_the_cache_are_refused() {
    let options = options().store(KvStore::F16);
    for mut kernel in kernels(&options) {
        let (q, mut k) = (Array3::ones((1, 4, 8)), Array3::ones((1, 2, 8)));
        k[[0, 1, 3]] = 70_000.0;
        let error =
            kernel.forward(q.view(), k.view(), k.view(), Array3::zeros((1, 4, 8)).view_mut()).unwrap_err();
        assert!(matches!(error, AttentionError::Core(CoreError::NotStorable { channel: 3, .. })), "{error}");
        assert!(error.to_string().contains("70000"), "{error}");
        assert_eq!(kernel.len(), 0);
        forward(&mut *kernel, (1, 4, 8), (1, 2, 8), (1, 2, 8), (1, 4, 8)).unwrap();
    }
}

/// Exact copies are f16 in the compact store, but coded keys take what f32 does.
#[test]
fn what_a_store_takes_is_checked_before_anything_is_held() {
    let options = options().store(KvStore::Compact);
    let policy = || ThresholdPolicy::Uniform(0.1);
    let mut delta = DeltaAttention::new(shape(), policy(), 0, options.clone()).unwrap();
    let mut hybrid =
        HybridAttention::new(shape(), HybridConfig::new(policy()).options(options.clone())).unwrap();
    let (small, mut large) = (Array3::ones((2, 2, 8)), Array3::ones((2, 2, 8)));
    large[[1, 1, 3]] = 70_000.0;
    let forward = |kernel: &mut dyn AttentionKernel, k: &Array3<f32>, v: &Array3<f32>| {
        let (q, mut out) = (Array3::from_elem((2, 4, 8), 0.01), Array3::zeros((2, 4, 8)));
        kernel.forward(q.view(), k.view(), v.view(), out.view_mut())
    };
    let refuses = |kernel: &mut dyn AttentionKernel, k, v| {
        let error = forward(kernel, k, v).unwrap_err();
        assert!(matches!(error, AttentionError::Core(CoreError::NotStorable { channel: 3, .. })), "{error}");
        assert_eq!((kernel.len(), kernel.footprint().total()), (0, 0));
    };
    refuses(&mut delta, &small, &large);
    refuses(&mut hybrid, &large, &small);
    refuses(&mut hybrid, &small, &large);
    forward(&mut delta, &large, &small).unwrap();
}

/// A far key whose score is no number must not be taken for one that may be skipped.
#[test]
fn far_scores_that_are_no_numbers_are_an_error_and_not_skipped() {
    let config = HybridConfig::new(ThresholdPolicy::Uniform(0.0))
        .exact_window(ExactWindow::Sliding(8))
        .exact_sinks(2)
        .skip_margin(SkipMargin::Fixed(4.0));
    for isa in Isa::available() {
        // Sums of integers stay finite here.
        for precision in [Precision::F32, Precision::Bf16] {
            let options = options().isa(isa).precision(precision);
            // The key is beyond all bounds for queries that see it from afar, and nothing to those that have it in the window.
            let q = Array3::from_shape_fn((300, 4, 8), |(t, ..)| if t < 64 { 0.0 } else { 1e9 });
            let mut k = Array3::from_elem((300, 2, 8), 1e-9);
            for (j, x) in k.slice_mut(s![40, 1, ..]).iter_mut().enumerate() {
                // Infinity less infinity; with fused products it stays at infinity.
                *x = if j < 4 { 1e38 } else { -1e38 };
            }
            let mut kernel = HybridAttention::new(shape(), config.clone().options(options.clone())).unwrap();
            let (v, mut out) = (Array3::ones((300, 2, 8)), Array3::zeros((300, 4, 8)));
            let result = kernel.forward(q.view(), k.view(), v.view(), out.view_mut());
            assert_eq!(result, Err(AttentionError::Overflow), "{isa} {precision}");
            k.slice_mut(s![40, 1, ..]).fill(1e-9);
            kernel.forward(q.view(), k.view(), v.view(), out.view_mut()).unwrap();
        }
    }
}

#[test]
fn scores_beyond_f32_are_an_error_at_every_level() {
    for isa in Isa::available() {
        for mut kernel in kernels(&options().isa(isa)) {
            forward(&mut *kernel, (3, 4, 8), (3, 2, 8), (3, 2, 8), (3, 4, 8)).unwrap();
            let (q, k) = (Array3::from_elem((2, 4, 8), 1e30), Array3::from_elem((2, 2, 8), 1e30));
            let error = kernel
                .forward(q.view(), k.view(), k.view(), Array3::zeros((2, 4, 8)).view_mut())
                .unwrap_err();
            assert_eq!(error, AttentionError::Overflow, "{isa}");
            // Sums of +inf and -inf: NaN scores.
            let q = Array3::from_elem((2, 4, 8), 1e30);
            let k = Array3::from_shape_fn((2, 2, 8), |(_, _, j)| if j % 2 == 0 { 1e30 } else { -1e30 });
            let error = kernel
                .forward(q.view(), k.view(), k.view(), Array3::zeros((2, 4, 8)).view_mut())
                .unwrap_err();
            assert_eq!(error, AttentionError::Overflow, "{isa}");
            assert_eq!(kernel.len(), 3);
        }
    }
}

/// Blocks are a share of the prompt that is held, not of one that was refused.
#[test]
fn a_call_that_fails_leaves_the_window_as_it_was() {
    let inputs = common::Inputs::new(shape(), 60, 1);
    let config = HybridConfig::from(PaperRule { theta: 0.6, scale: 0.2 }).options(options());
    let [got, expected] = [true, false].map(|fails| {
        let mut kernel = HybridAttention::new(shape(), config.clone()).unwrap();
        inputs.call(&mut kernel, 40).unwrap();
        if fails {
            let (q, k) = (Array3::from_elem((20, 4, 8), f32::MAX), Array3::from_elem((20, 2, 8), 2.0));
            let error = kernel
                .forward(q.view(), k.view(), k.view(), Array3::zeros((20, 4, 8)).view_mut())
                .unwrap_err();
            assert_eq!(error, AttentionError::Overflow);
        }
        inputs.run(&mut kernel, &(41..=60).collect::<Vec<_>>())
    });
    assert_eq!(got, expected);
}

#[test]
fn truncate_beyond_the_length_is_refused() {
    for mut kernel in kernels(&options()) {
        forward(&mut *kernel, (3, 4, 8), (3, 2, 8), (3, 2, 8), (3, 4, 8)).unwrap();
        let error = kernel.truncate(4).unwrap_err();
        assert_eq!(error.to_string(), "truncate: expected a length of at most 3, got 4");
        kernel.truncate(3).unwrap();
        kernel.truncate(0).unwrap();
        assert!(kernel.is_empty());
    }
}

#[test]
fn a_budget_smaller_than_one_token_is_refused_and_gives_everything_back() {
    let budget = MemoryBudget::new(100);
    for mut kernel in kernels(&options().budget(budget.clone())) {
        let error = forward(&mut *kernel, (1, 4, 8), (1, 2, 8), (1, 2, 8), (1, 4, 8)).unwrap_err();
        assert!(
            matches!(error, AttentionError::Core(CoreError::BudgetExhausted { limit: 100, .. })),
            "{error}"
        );
        assert_eq!(kernel.len(), 0);
    }
    assert_eq!(budget.used(), 0);
}

#[test]
fn an_exhausted_budget_loses_nothing_that_is_cached() {
    for index in 0..3 {
        // Room for the first 64 tokens, but not for 200.
        let full = {
            let mut kernel = kernels(&options()).swap_remove(index);
            forward(&mut *kernel, (64, 4, 8), (64, 2, 8), (64, 2, 8), (64, 4, 8)).unwrap();
            kernel.footprint().total()
        };
        let budget = MemoryBudget::new(full + 1000);
        let mut kernel = kernels(&options().budget(budget.clone())).swap_remove(index);
        let mut free = kernels(&options()).swap_remove(index);
        for kernel in [&mut kernel, &mut free] {
            forward(&mut **kernel, (64, 4, 8), (64, 2, 8), (64, 2, 8), (64, 4, 8)).unwrap();
        }
        assert_eq!(kernel.footprint().total(), budget.used());
        let error = forward(&mut *kernel, (136, 4, 8), (136, 2, 8), (136, 2, 8), (136, 4, 8)).unwrap_err();
        assert!(matches!(error, AttentionError::Core(CoreError::BudgetExhausted { .. })), "{error}");
        assert_eq!(kernel.len(), 64);
        assert_eq!(kernel.footprint().total(), budget.used());
        // What was cached still answers as it would have.
        kernel.truncate(60).unwrap();
        free.truncate(60).unwrap();
        let dims = ((4, 4, 8), (4, 2, 8));
        let got = forward(&mut *kernel, dims.0, dims.1, dims.1, dims.0).unwrap();
        assert_eq!(got, forward(&mut *free, dims.0, dims.1, dims.1, dims.0).unwrap());
    }
}

#[test]
fn the_footprint_is_what_the_budget_was_charged() {
    for tokens in [1, 63, 64, 65, 300] {
        let budget = MemoryBudget::unlimited();
        for mut kernel in kernels(&options().budget(budget.clone())) {
            forward(&mut *kernel, (tokens, 4, 8), (tokens, 2, 8), (tokens, 2, 8), (tokens, 4, 8)).unwrap();
            assert_eq!(kernel.footprint().total(), budget.used());
            kernel.truncate(tokens / 2).unwrap();
            assert_eq!(kernel.footprint().total(), budget.used());
        }
        assert_eq!(budget.used(), 0);
    }
}

#[test]
fn a_plan_is_the_footprint_token_by_token() {
    for (window, sinks) in [(1, 0), (16, 4), (17, 40), (64, 4)] {
        let options = options();
        let config = HybridConfig::new(ThresholdPolicy::Uniform(0.0))
            .exact_window(ExactWindow::Sliding(window))
            .exact_sinks(sinks);
        let mut kernel = HybridAttention::new(shape(), config.clone().options(options.clone())).unwrap();
        let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.0, escapes: 0.0, window, sinks };
        let plan = CachePlan::new(2, 8, KvStore::F32, keys);
        for t in 0..300 {
            // Half of the channels change at every step.
            let k = Array3::from_shape_fn(
                (1, 2, 8),
                |(_, _, j)| if j % 2 == 0 { t as f32 * 0.1 + 1.0 } else { 0.0 },
            );
            let q = Array3::ones((1, 4, 8));
            kernel.forward(q.view(), k.view(), k.view(), Array3::zeros((1, 4, 8)).view_mut()).unwrap();
            assert_eq!(
                kernel.footprint(),
                plan.footprint(t + 1),
                "window {window}, {sinks} sinks, {} tokens",
                t + 1
            );
        }
    }
}

#[test]
fn a_huge_number_of_sinks_reserves_nothing() {
    let config = HybridConfig::new(ThresholdPolicy::Uniform(0.1)).exact_sinks(usize::MAX);
    let mut kernel = HybridAttention::new(shape(), config.clone().options(options())).unwrap();
    forward(&mut kernel, (100, 4, 8), (100, 2, 8), (100, 2, 8), (100, 4, 8)).unwrap();
    assert_eq!(kernel.stats().total().exact_share(), 1.0);
    assert!(kernel.footprint().window < 100 * 2 * 2 * 8 * 4 * 2);
}

#[test]
fn impossible_shapes_are_refused() {
    for (heads, kv_heads, head_dim) in [(0, 1, 8), (4, 0, 8), (4, 2, 0), (5, 2, 8), (2, 4, 8)] {
        assert!(matches!(AttentionShape::new(heads, kv_heads, head_dim), Err(AttentionError::Shape { .. })));
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let options = options();
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        for options in [options.clone().scale(bad), options.clone().softcap(bad)] {
            assert!(matches!(
                DenseAttention::new(shape(), options.clone()),
                Err(AttentionError::Setting { .. })
            ));
        }
        let config = HybridConfig::new(ThresholdPolicy::Uniform(0.1)).skip_margin(SkipMargin::Fixed(bad));
        assert!(matches!(
            HybridAttention::new(shape(), config.clone().options(options.clone())),
            Err(AttentionError::Setting { .. })
        ));
    }
    let no_window = HybridConfig::new(ThresholdPolicy::Uniform(0.1)).exact_window(ExactWindow::Sliding(0));
    assert!(matches!(
        HybridAttention::new(shape(), no_window.clone().options(options.clone())),
        Err(AttentionError::Setting { .. })
    ));
    let negative = HybridConfig::new(ThresholdPolicy::Uniform(-0.1));
    assert!(matches!(
        HybridAttention::new(shape(), negative.clone().options(options.clone())),
        Err(AttentionError::Core(CoreError::Threshold { .. }))
    ));
}

#[test]
fn a_profile_for_another_model_is_refused() {
    let profile = ThresholdProfile::new(ModelFingerprint(1), [1, 3, 8], vec![0.1; 24]).unwrap();
    let error =
        DeltaAttention::new(shape(), ThresholdPolicy::Profile(profile.into()), 0, options()).unwrap_err();
    assert_eq!(error.to_string(), "threshold profile: expected kv_heads = 2, got 3");
}

#[test]
fn a_short_slice_is_refused() {
    assert_eq!(
        HeadsView::new(&[0.0; 11], [2, 2, 3]).unwrap_err(),
        AttentionError::SliceTooShort { input: "view", expected: 12, got: 11 }
    );
    assert!(HeadsView::strided(&[0.0; 11], [2, 1, 3], usize::MAX, 3).is_err());
    assert!(HeadsView::<f32>::new(&[], [usize::MAX, usize::MAX, 3]).is_err());
}

#[test]
fn more_queries_than_keys_are_refused() {
    let data = [0.5; 3 * 32];
    let (q, k) = (HeadsView::new(&data, [3, 4, 8]).unwrap(), HeadsView::new(&data, [2, 2, 8]).unwrap());
    let mut out = [0.0; 96];
    let out = HeadsViewMut::new(&mut out, [3, 4, 8]).unwrap();
    let error = attend_dense(shape(), &options(), q, k, k, out).unwrap_err();
    assert_eq!(error.to_string(), "k: expected tokens (at least those of q) = 3, got 2");
}

/// Views whose rows lie over each other can stand for more numbers than there is memory for.
#[test]
fn views_of_more_numbers_than_there_are_get_no_memory() {
    let mut kernel = DenseAttention::new(shape(), options()).unwrap();
    let ones = [f16::ONE; 64];
    let view = HeadsView::strided(&ones, [1, 1 << 60, 8], 8, 0).unwrap();
    let good = HeadsView::new(&ones, [1, 2, 8]).unwrap();
    let mut out = [f16::ONE; 32];
    for [q, k] in [[view, good], [good, view]] {
        let out = HeadsViewMut::new(&mut out, [1, 4, 8]).unwrap();
        let error = forward_half(&mut kernel, q, k, good, out).unwrap_err();
        assert!(
            matches!(error, AttentionError::Shape { dimension: "head stride (at least)", .. }),
            "{error}"
        );
    }
    let one = arr0(1.0_f32);
    let (q, good) = (one.broadcast((1 << 21, 1 << 21, 1 << 20)).unwrap(), Array3::zeros((1, 2, 8)));
    let mut out = Array3::zeros((1, 4, 8));
    let error = kernel.forward(q, good.view(), good.view(), out.view_mut()).unwrap_err();
    assert!(matches!(error, AttentionError::Shape { dimension: "token stride (at least)", .. }), "{error}");
    assert!(kernel.is_empty());
    let none = Array3::zeros((0, 1 << 30, 1 << 30));
    for keys in [none.view(), q] {
        let error = RateCurves::new().add(keys).unwrap_err();
        assert!(matches!(error, AttentionError::Shape { dimension: "channels (at most)", .. }), "{error}");
    }
}

#[test]
fn lengths_that_add_up_to_more_than_there_can_be_are_refused() {
    let mut kernels = [(); 2].map(|()| DenseAttention::new(shape(), options()).unwrap());
    let mut kernels = kernels.each_mut().map(|kernel| kernel as &mut dyn AttentionKernel);
    let view = HeadsView::<f32>::new(&[], [usize::MAX, 0, 8]).unwrap();
    let out = HeadsViewMut::<f32>::new(&mut [], [usize::MAX, 0, 8]).unwrap();
    assert!(forward_batch(&mut kernels, &[usize::MAX, 5], view, view, view, out).is_err());
    let view = HeadsView::<f32>::new(&[], [7, 0, 8]).unwrap();
    let out = HeadsViewMut::strided(&mut [], [7, 0, 8], usize::MAX, 0).unwrap();
    assert!(forward_batch(&mut kernels, &[5, 2], view, view, view, out).is_err());
}

/// A window lets go of tokens while others come: what a failing call has brought goes all the same.
#[test]
fn tokens_one_by_one_are_all_taken_or_none() {
    for store in [KvStore::F32, KvStore::Int8] {
        let inputs = common::Inputs::new(shape(), 200, 1);
        let options = options().store(store).mask(Mask::SlidingWindow(4));
        let mut kernel = DenseAttention::new(shape(), options.clone()).unwrap();
        let mut alone = DenseAttention::new(shape(), options).unwrap();
        inputs.run(&mut kernel, &[100]);
        inputs.run(&mut alone, &[100]);
        let (tokens, mut bad) = (100..180, inputs.k.clone());
        let width = bad.len() / inputs.tokens;
        bad[179 * width] = f32::NAN;
        let (k, v) = (inputs.kv(&bad, tokens.clone()), inputs.kv(&inputs.v, tokens.clone()));
        let mut out = vec![0.0; 80 * inputs.q_row()];
        let out = HeadsViewMut::new(&mut out, [80, 4, 8]).unwrap();
        let error = forward_one_by_one(&mut kernel, inputs.q(tokens), k, v, out).unwrap_err();
        assert!(matches!(error, AttentionError::NotFinite { .. }), "{error}");
        assert_eq!(kernel.len(), 100);
        assert_eq!(inputs.run(&mut kernel, &[101, 150]), inputs.run(&mut alone, &[101, 150]));
    }
}
