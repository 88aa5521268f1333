//! No value of a public argument makes anything here panic, abort or run for ever: it is answered or refused.

use std::sync::Arc;

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionOptions, AttentionProfile, AttentionShape, CalibrationGoal,
    DeltaAttention, DenseAttention, ExactWindow, HeadsView, HeadsViewMut, HybridAttention, HybridConfig,
    KernelContext, KernelKind, KernelSpec, KvStore, LayerSpec, MemoryBudget, SkipMargin, ThresholdPolicy,
    attend_dense, attend_hybrid,
    calibration::{CalibrationRequest, Calibrator, RateCurves, Score},
    reference::{Method, attention},
};
use deltallm_core::{CoreError, ModelFingerprint, TargetSparsity, ThresholdProfile};
use ndarray::{Array2, Array3};

const SIZES: [usize; 6] = [0, 1, 70, 1 << 40, usize::MAX / 2, usize::MAX];
const NUMBERS: [f32; 9] =
    [0.0, 1.0, -1.0, f32::MIN_POSITIVE, 1e-45, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];

fn shape() -> AttentionShape {
    AttentionShape::new(4, 2, 8).unwrap()
}

/// Calls a kernel with a prompt and a token, whatever comes of it.
fn use_kernel(kernel: &mut dyn AttentionKernel) {
    for tokens in [70, 1, 1] {
        let (q, k) = (vec![0.5; tokens * 32], vec![0.25; tokens * 16]);
        let (q, k) =
            (HeadsView::new(&q, [tokens, 4, 8]).unwrap(), HeadsView::new(&k, [tokens, 2, 8]).unwrap());
        let mut out = vec![0.0; tokens * 32];
        let _ = kernel.forward_heads(q, k, k, HeadsViewMut::new(&mut out, [tokens, 4, 8]).unwrap());
        for tokens in SIZES {
            assert!(kernel.growth(tokens).is_some());
        }
        let _ = (kernel.footprint().total(), kernel.stats().total().sparsity(), format!("{kernel:?}"));
    }
    assert!(kernel.truncate(usize::MAX).is_err());
    for tokens in SIZES {
        kernel.begin_prompt(tokens);
    }
    let _ = kernel.narrow();
    kernel.truncate(0).unwrap();
}

#[test]
fn a_shape_of_one_head_of_usize_max_channels() {
    let error = AttentionShape::new(1, 1, usize::MAX).unwrap_err();
    let expected = format!("shape: expected head_dim (at most) = 65536, got {}", usize::MAX);
    assert_eq!(error.to_string(), expected);
    for heads in SIZES {
        for kv_heads in SIZES {
            for head_dim in SIZES {
                let shape = AttentionShape::new(heads, kv_heads, head_dim);
                assert!(shape.is_err() || heads.max(kv_heads).max(head_dim) <= 70);
            }
        }
    }
    assert!(AttentionShape::new(1 << 16, 1, 1 << 16).is_err());
    assert!(AttentionShape::new(1 << 16, 1 << 16, 16).is_ok());
}

#[test]
fn two_to_the_40_heads_under_a_budget_of_a_mebibyte() {
    assert!(AttentionShape::new(1 << 40, 1 << 40, 64).is_err());
    // The most heads that there can be: refused by the budget when they are used.
    let shape = AttentionShape::new(1 << 14, 1 << 14, 64).unwrap();
    let budget = MemoryBudget::new(1 << 20);
    let options = AttentionOptions::default().budget(budget.clone());
    let mut attention = DenseAttention::new(shape, options).unwrap();
    let (row, mut out) = (vec![0.5; 1 << 20], vec![0.0; 1 << 20]);
    let view = HeadsView::new(&row, [1, 1 << 14, 64]).unwrap();
    let out = HeadsViewMut::new(&mut out, [1, 1 << 14, 64]).unwrap();
    let error = attention.forward_heads(view, view, view, out).unwrap_err();
    assert!(matches!(error, AttentionError::Core(CoreError::BudgetExhausted { .. })), "{error}");
    // Tables stay for the next use.
    assert_eq!((attention.len(), attention.footprint().total()), (0, budget.used()));
}

#[test]
fn a_layer_of_number_usize_max() {
    let profile = ThresholdProfile::new(ModelFingerprint(1), [2, 2, 8], vec![0.5; 32]).unwrap();
    let profile = ThresholdPolicy::Profile(Arc::new(profile));
    let layers = [0, 1, 2, usize::MAX - 1, usize::MAX];
    for layer in layers {
        let config = HybridConfig::new(profile.clone()).layer(layer);
        let made = HybridAttention::new(shape(), config);
        assert_eq!(made.is_ok(), layer < 2, "{layer}");
        let made = DeltaAttention::new(shape(), profile.clone(), layer, AttentionOptions::default());
        assert_eq!(made.is_ok(), layer < 2, "{layer}");
        use_kernel(&mut HybridAttention::new(shape(), HybridConfig::default().layer(layer)).unwrap());
    }
    let context = KernelContext::new(shape());
    for kernel in KernelKind::ALL {
        for thresholds in [profile.clone(), ThresholdPolicy::Uniform(0.5)] {
            for layers_of_spec in [vec![], vec![LayerSpec::default(); 2]] {
                let spec = KernelSpec::default()
                    .kernel(kernel)
                    .thresholds(thresholds.clone())
                    .layers(layers_of_spec);
                for layer in layers {
                    let _ = (spec.layer(layer), spec.options(layer, &context), spec.build(layer, &context));
                    let _ = spec.hybrid_config(layer, &context).map(|config| config.layer);
                }
                for layers in SIZES {
                    let _ = (spec.validate(shape(), layers), spec.validate_on(context.isa, layers));
                }
            }
        }
    }
}

#[test]
fn any_setting_is_taken_or_refused() {
    for number in NUMBERS {
        for options in [
            AttentionOptions::default().scale(number),
            AttentionOptions::default().softcap(number),
            AttentionOptions::default().scale(number).softcap(number),
        ] {
            for store in KvStore::ALL {
                let options = options.clone().store(store);
                let dense = DenseAttention::new(shape(), options.clone());
                dense.into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
                let hybrid = HybridAttention::new(shape(), HybridConfig::default().options(options));
                hybrid.into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
            }
        }
        let target = TargetSparsity::new(number);
        for thresholds in [ThresholdPolicy::Uniform(number), ThresholdPolicy::TargetSparsity(target)] {
            let hybrid = HybridAttention::new(shape(), HybridConfig::new(thresholds));
            hybrid.into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
        }
        for margin in NUMBERS.map(|least| SkipMargin::Length { base: number, slope: number, least }) {
            for margin in [margin, SkipMargin::Fixed(number)] {
                SIZES.into_iter().for_each(|size| drop(margin.nats(size, size).to_string()));
                let hybrid = HybridAttention::new(shape(), HybridConfig::default().skip_margin(margin));
                hybrid.into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
            }
        }
        let blocks = HybridConfig::default().exact_window(ExactWindow::Block { scale: number });
        HybridAttention::new(shape(), blocks).into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
    }
    for size in SIZES {
        let config = HybridConfig::default()
            .exact_window(ExactWindow::Sliding(size))
            .exact_sinks(size)
            .exact_prompt(size);
        HybridAttention::new(shape(), config).into_iter().for_each(|mut kernel| use_kernel(&mut kernel));
        for window in [ExactWindow::Sliding(1), ExactWindow::Block { scale: 1.0 }] {
            let mut kernel =
                HybridAttention::new(shape(), HybridConfig::default().exact_window(window)).unwrap();
            kernel.begin_prompt(size);
            use_kernel(&mut kernel);
        }
    }
}

#[test]
fn views_of_any_sizes_and_strides() {
    let (data, mut out) = ([0.5_f32; 100], [0.0_f32; 100]);
    for tokens in SIZES {
        for heads in SIZES {
            for head_dim in SIZES {
                let dims = [tokens, heads, head_dim];
                let _ = (HeadsView::new(&data, dims).is_ok(), HeadsViewMut::new(&mut out, dims).is_ok());
                for stride in SIZES {
                    let Ok(view) = HeadsView::strided(&data, dims, stride, stride) else { continue };
                    for token in SIZES {
                        assert!(view.row(token, token).len() <= 100);
                        let _ = (view.slice(token..tokens).is_ok(), view.slice(0..token).is_ok());
                    }
                    let Ok(mut out) = HeadsViewMut::strided(&mut out, dims, stride, stride) else { continue };
                    assert!(out.row_mut(tokens, heads).is_empty());
                    let _ = (out.slice(tokens..0).is_ok(), out.slice(0..usize::MAX).is_ok());
                    // None of these is a call of this shape, and checking it ends.
                    assert!(shape().check_call(&view, &view, &view, &out).is_err());
                    let options = AttentionOptions::default();
                    assert!(attend_dense(shape(), &options, view, view, view, out).is_err());
                }
            }
        }
    }
    let one = HeadsView::strided(&data, [3, 2, 8], 0, 8).unwrap_err();
    assert_eq!(one.to_string(), "view: expected token stride (at least) = 1, got 0");
}

#[test]
fn rows_of_an_output_never_share_an_element() {
    let mut out = [0.0; 100];
    let mut taken = 0;
    for (tokens, heads, head_dim) in [(3, 4, 2), (1, 4, 3), (4, 1, 3), (1, 1, 5), (2, 2, 1)] {
        for (token, head) in (0..12).flat_map(|token| (0..12).map(move |head| (token, head))) {
            let dims = [tokens, heads, head_dim];
            let Ok(mut view) = HeadsViewMut::strided(&mut out, dims, token, head) else { continue };
            (0..tokens)
                .for_each(|t| (0..heads).for_each(|h| view.row_mut(t, h).iter_mut().for_each(|x| *x += 1.0)));
            assert!(out.iter().all(|x| *x <= 1.0), "{dims:?} with strides {token} and {head}");
            assert_eq!(out.iter().sum::<f32>(), (tokens * heads * head_dim) as f32);
            out.fill(0.0);
            taken += 1;
        }
    }
    assert!(taken > 100, "token after token, head after head, and with gaps");
}

#[test]
fn a_call_without_keys_is_refused() {
    let nothing = HeadsView::new(&[], [0, 2, 8]).unwrap();
    let (row, mut out) = ([0.5; 32], [0.0; 32]);
    let q = HeadsView::new(&row, [1, 4, 8]).unwrap();
    let out = HeadsViewMut::new(&mut out, [1, 4, 8]).unwrap();
    assert!(attend_hybrid(shape(), &HybridConfig::default(), q, nothing, nothing, out).is_err());
}

#[test]
fn the_reference_refuses_what_it_cannot_compute() {
    let (row, shape) = ([0.5; 32], shape());
    let q = HeadsView::new(&row, [1, 4, 8]).unwrap();
    let kv = HeadsView::new(&row, [1, 2, 8]).unwrap();
    let with = |change: &dyn Fn(&mut Method)| {
        let mut method = Method { thresholds: Some(vec![vec![0.5; 8]; 2]), ..Method::dense(&shape) };
        change(&mut method);
        attention(&shape, &method, &q, &kv, &kv)
    };
    assert!(with(&|_| ()).is_ok());
    assert!(with(&|method| method.tile = usize::MAX).is_ok());
    assert!(with(&|method| method.tile = 0).is_err());
    assert!(with(&|method| method.thresholds = Some(vec![vec![0.5; 8]])).is_err());
    assert!(with(&|method| method.thresholds = Some(vec![vec![0.5; 7]; 2])).is_err());
    assert!(with(&|method| method.exact_window = Some(ExactWindow::Sliding(0))).is_err());
    assert!(with(&|method| method.skip_margin = Some(SkipMargin::Fixed(f32::NAN))).is_err());
    for size in SIZES {
        let extreme = with(&|method| {
            (method.prompt_end, method.exact_until, method.exact_sinks) = (size, size, size);
            method.exact_window = Some(ExactWindow::Block { scale: 1.0 });
        });
        assert!(extreme.is_ok());
    }
    assert!(attention(&shape, &Method::dense(&shape), &q, &q, &kv).is_err());
    assert!(attention(&shape, &Method::dense(&shape), &kv, &kv, &kv).is_err());
}

#[test]
fn calibration_takes_any_sizes() {
    let (q, kv) = (Array3::ones((9, 4, 8)), Array3::ones((9, 2, 8)));
    for size in SIZES {
        let mut curves = RateCurves::new();
        curves.add(Array3::zeros((3, 1, 2)).view()).unwrap();
        for number in NUMBERS {
            assert!(curves.sent(size, number) >= 0.0 && curves.sent(0, number) >= 0.0);
            let goals =
                [CalibrationGoal::Kl(f64::from(number)), CalibrationGoal::ZeroFraction(f64::from(number))];
            for request in
                goals.map(|goal| CalibrationRequest::new(goal).exact_window(size).exact_sinks(size))
            {
                let Ok(mut calibrator) = Calibrator::new(shape(), size, request) else { continue };
                let runs = calibrator.runs();
                assert!(runs > 0);
                let seen = calibrator.observe(0, q.view(), kv.view(), kv.view());
                assert_eq!(seen.is_ok(), size > 0);
                assert!(calibrator.observe(size, q.view(), kv.view(), kv.view()).is_err());
                assert!(calibrator.output_projection(0, Array2::ones((3, 31)).view()).is_err());
                if size < 100 {
                    let _ = calibrator.find(|_| Err::<Score, _>("no engine"));
                }
            }
        }
    }
}

#[test]
fn a_profile_of_other_heads_than_kernels_take() {
    let thresholds = ThresholdProfile::new(ModelFingerprint(1), [1, 1, 70_000], vec![0.5; 70_000]).unwrap();
    assert!(AttentionProfile::new(Arc::new(thresholds), KernelSpec::default()).is_err());
}
