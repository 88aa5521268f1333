//! The search for settings, with an engine that is made up: two layers of numbers, and their change for a divergence.

use deltallm_attn::{
    AttentionError, AttentionKernel, AttentionShape, CalibrationGoal, HeadsView, HeadsViewMut, Isa,
    KernelContext, KernelKind, KernelSpec, KvStore, LayerSpec, Mask, SparsityStats,
    calibration::{Calibrated, CalibrationError, CalibrationRequest, Calibrator, Score},
};
use deltallm_core::ModelFingerprint;
use deltallm_testing::Random;
use ndarray::Array2;

const TOKENS: usize = 320;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const LAYERS: usize = 2;

fn shape() -> AttentionShape {
    AttentionShape::new(HEADS, KV_HEADS, HEAD_DIM).unwrap()
}

/// What one layer is given for a window of text.
struct Layer {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Layer {
    /// Queries and values at random; keys wander, some channels faster than others.
    fn new(tokens: usize, seed: u64) -> Self {
        let mut random = Random::scattered(seed);
        let mut k = vec![0.0; tokens * KV_HEADS * HEAD_DIM];
        let width = KV_HEADS * HEAD_DIM;
        for i in 0..k.len() {
            let before = if i < width { 0.0 } else { k[i - width] };
            k[i] = 0.98 * before + 0.1 * (1 + i % 4) as f32 * random.number();
        }
        let q = random.numbers(tokens * HEADS * HEAD_DIM).into_iter().map(|x| 4.0 * x).collect();
        Self { q, k, v: random.numbers(tokens * KV_HEADS * HEAD_DIM) }
    }

    fn views(&self) -> [HeadsView<'_>; 3] {
        let view = |data, heads| {
            let tokens = Vec::len(data) / heads / HEAD_DIM;
            HeadsView::new(data, [tokens, heads, HEAD_DIM]).unwrap()
        };
        [view(&self.q, HEADS), view(&self.k, KV_HEADS), view(&self.v, KV_HEADS)]
    }

    fn run(
        &self,
        layer: usize,
        masks: &[Mask],
        spec: &KernelSpec,
    ) -> Result<(Vec<f32>, SparsityStats), AttentionError> {
        let context = KernelContext::new(shape()).isa(Isa::from_env().unwrap()).masks(masks);
        let (mut kernel, mut out) = (spec.build(layer, &context)?, vec![0.0; self.q.len()]);
        let [q, k, v] = self.views();
        kernel.forward_heads(q, k, v, HeadsViewMut::new(&mut out, [q.tokens(), HEADS, HEAD_DIM])?)?;
        Ok((out, kernel.stats()))
    }
}

fn text(seed: u64) -> [Layer; LAYERS] {
    [0, 1].map(|layer| Layer::new(TOKENS, seed + layer))
}

/// Scores a setting on text that is not calibrated on: the mean square of what it changes stands for a divergence.
struct Engine {
    text: [Layer; LAYERS],
    dense: [Vec<f32>; LAYERS],
    /// On top of every divergence, as linear layers cause it that round their inputs.
    rounding: f64,
}

impl Engine {
    fn new() -> Self {
        let text = text(100);
        let dense = KernelSpec::default().kernel(KernelKind::Dense);
        let dense = [0, 1].map(|layer: usize| text[layer].run(layer, &[], &dense).unwrap().0);
        Self { text, dense, rounding: 0.0 }
    }

    fn score(&self, spec: &KernelSpec) -> Result<Score, AttentionError> {
        self.score_under(&[], spec)
    }

    fn score_under(&self, masks: &[Mask], spec: &KernelSpec) -> Result<Score, AttentionError> {
        let mut score = Score { tokens: TOKENS, kl: self.rounding, ..Score::default() };
        for (layer, (text, dense)) in self.text.iter().zip(&self.dense).enumerate() {
            let (out, stats) = text.run(layer, masks, spec)?;
            let squares: f64 = out.iter().zip(dense).map(|(a, b)| f64::from((a - b).powi(2))).sum();
            score.kl += squares / dense.len() as f64;
            score.layers.push(stats);
        }
        Ok(score)
    }
}

fn request(goal: CalibrationGoal) -> CalibrationRequest {
    CalibrationRequest::new(goal).exact_window(16).store(KvStore::F32)
}

fn calibrator(request: CalibrationRequest) -> Calibrator {
    calibrator_of(Calibrator::new(shape(), LAYERS, request).unwrap())
}

/// The calibrator after it has been shown two windows.
fn calibrator_of(mut calibrator: Calibrator) -> Calibrator {
    for seed in [1, 11] {
        for (layer, text) in text(seed).iter().enumerate() {
            let [q, k, v] = text.views();
            calibrator.observe_heads(layer, q, k, v).unwrap();
        }
    }
    calibrator
}

/// Calibrates, and checks the number of settings tried.
fn find(request: CalibrationRequest) -> Result<Calibrated, CalibrationError> {
    let (calibrator, engine) = (calibrator(request), Engine::new());
    let (most, mut runs) = (calibrator.runs(), 0);
    let found = calibrator.find(|spec| {
        runs += 1;
        engine.score(spec)
    });
    assert!(runs <= most, "{runs} of {most}");
    found
}

#[test]
fn a_limit_is_kept_and_a_looser_one_gives_as_many_zeros_or_more() {
    for skips in [false, true] {
        let mut fewest = 0.0;
        for limit in [1e-4, 1e-3, 1e-2] {
            let found = find(request(CalibrationGoal::Kl(limit)).skips(skips)).unwrap();
            assert!(found.without_skipping.kl <= limit, "{skips} {limit}");
            assert!(found.zero_fraction >= fewest && found.zero_fraction > 0.0, "{skips} {limit}");
            fewest = found.zero_fraction;
            // What was found does what was said of it.
            // It was scored as if the text were longer than the prompts that are attended exactly.
            let layers = found.spec.layers.iter();
            let layers = layers.map(|layer| layer.exact_prompt(None)).collect();
            let again = Engine::new().score(&found.spec.clone().layers(layers)).unwrap();
            assert_eq!(again.held_out(), found.held_out, "{skips} {limit}");
            assert!(found.held_out.kl <= limit, "{skips} {limit}: {}", found.held_out.kl);
            assert_eq!((found.tokens, found.context), (2 * TOKENS, TOKENS));
        }
    }
}

#[test]
fn layers_that_attend_to_few_keys_are_left_dense() {
    for skips in [false, true] {
        let request = request(CalibrationGoal::ZeroFraction(0.5)).store(KvStore::Compact).skips(skips);
        let masks = [Mask::SlidingWindow(300), Mask::Causal];
        let calibrator = calibrator_of(Calibrator::new(shape(), LAYERS, request).unwrap().masks(masks));
        let mut runs = 0;
        let found = calibrator.find(|spec| {
            runs += 1;
            Engine::new().score_under(&masks, spec)
        });
        let found = found.unwrap();
        let dense = LayerSpec::default().dense(true).exact_prompt(0);
        assert_eq!(found.spec.layers[0], dense, "{skips}: no margin, and no store of its own");
        assert!((found.zero_fraction - 0.5).abs() < 0.01, "{skips}: those of the other layer");
    }
}

#[test]
fn thresholds_leave_half_of_a_limit_to_skipping() {
    let limit: f64 = 1e-3;
    let zeros = |limit, skips| find(request(CalibrationGoal::Kl(limit)).skips(skips)).unwrap().zero_fraction;
    let CalibrationError::Unreachable { least, .. } = find(request(CalibrationGoal::Kl(1e-15))).unwrap_err()
    else {
        panic!("nothing is as good as that")
    };
    let half = zeros(limit.midpoint(least), false);
    assert!(half < zeros(limit, false));
    assert_eq!(zeros(limit, true), half);
}

#[test]
fn what_linear_layers_round_is_neither_thresholds_nor_skipping() {
    let rounding = 5e-4;
    let find = |goal, rounding| {
        let engine = Engine { rounding, ..Engine::new() };
        let found = calibrator(request(goal)).find(|spec| engine.score(spec)).unwrap();
        (found.spec, found.held_out.kl - rounding)
    };
    for goal in [CalibrationGoal::Kl, |_| CalibrationGoal::ZeroFraction(0.6)] {
        let (exact, rounded) = (find(goal(1e-3), 0.0), find(goal(1e-3 + rounding), rounding));
        assert_eq!(exact.0, rounded.0);
        assert!((exact.1 - rounded.1).abs() < 1e-12, "{} {}", exact.1, rounded.1);
    }
}

#[test]
fn a_share_of_zeros_is_met_and_the_same_numbers_give_the_same_settings() {
    let request = request(CalibrationGoal::ZeroFraction(0.7)).skips(false);
    let found = find(request).unwrap();
    assert!((found.zero_fraction - 0.7).abs() < 0.01, "{}", found.zero_fraction);
    assert_eq!(found.spec, find(request).unwrap().spec);
    assert!(found.spec.layers.iter().all(|layer| layer.skip_margin.is_none()));
}

#[test]
fn what_the_request_says_is_in_the_settings() {
    let goal = CalibrationGoal::ZeroFraction(0.6);
    let found =
        find(request(goal).exact_sinks(2).store(KvStore::Compact).scale(0.3).exact_prompt(77)).unwrap();
    assert_eq!(
        (found.spec.exact_sinks, found.spec.store, found.spec.scale),
        (2, KvStore::Compact, Some(0.3))
    );
    for layer in &found.spec.layers {
        assert_eq!(layer.exact_prompt, Some(77));
        assert!([Some(KvStore::Compact), Some(KvStore::F16)].contains(&layer.store), "{layer:?}");
    }
    let profile = found.profile(ModelFingerprint(5), "made up", "00").unwrap();
    profile.check(ModelFingerprint(5), [LAYERS, KV_HEADS, HEAD_DIM]).unwrap();
    let provenance = profile.provenance().unwrap();
    assert_eq!((provenance.model.as_str(), provenance.goal), ("made up", goal));
    assert_eq!((provenance.tokens, provenance.held_out), (2 * TOKENS, found.held_out));
    assert_eq!(profile.spec().layers, found.spec.layers);
}

#[test]
fn output_projection_and_residual_stream_change_where_the_zeros_are() {
    let goal = request(CalibrationGoal::ZeroFraction(0.6)).skips(false);
    let mut told = calibrator(goal);
    let mut again = Calibrator::new(shape(), LAYERS, goal).unwrap();
    // The second layer's output is thrown away, but for a hundredth.
    for layer in 0..LAYERS {
        let weight = if layer == 0 { 1.0 } else { 0.01 };
        let weights = Array2::<f32>::eye(HEADS * HEAD_DIM) * weight;
        again.output_projection(layer, weights.view()).unwrap();
        for seed in [1, 11] {
            let text = &text(seed)[layer];
            let [q, k, v] = text.views();
            again.observe_heads(layer, q, k, v).unwrap();
            again.observe_residual(layer, Array2::ones((TOKENS, 3)).view()).unwrap();
        }
    }
    let engine = Engine::new();
    let zeros = |calibrator: Calibrator| {
        let found = calibrator.find(|spec| engine.score(spec)).unwrap();
        let score = engine.score(&found.spec).unwrap();
        [0, 1].map(|layer: usize| score.layers[layer].total().zero_fraction())
    };
    let (told_zeros, again_zeros) = (zeros(told.clone()), zeros(again));
    assert!(
        again_zeros[1] > told_zeros[1] && again_zeros[0] < told_zeros[0],
        "{told_zeros:?} {again_zeros:?}"
    );

    told.observe_residual(0, Array2::ones((TOKENS, 3)).view()).unwrap();
    let error = told.find(|spec| engine.score(spec)).unwrap_err();
    assert!(matches!(error, CalibrationError::Residual { layer: 0, expected: 640, got: 320 }), "{error}");
}

#[test]
fn what_cannot_be_calibrated_is_refused_by_name() {
    let goal = CalibrationGoal::ZeroFraction(0.5);
    let engine = Engine::new();
    let refused = |calibrator: Calibrator, part: &str| {
        let error = calibrator.find(|spec| engine.score(spec)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let new = |request| Calibrator::new(shape(), LAYERS, request);
    for bad in [
        request(CalibrationGoal::ZeroFraction(1.0)),
        request(CalibrationGoal::ZeroFraction(f64::NAN)),
        request(CalibrationGoal::Kl(0.0)),
        request(CalibrationGoal::Kl(f64::INFINITY)),
        request(goal).exact_window(0),
        request(goal).scale(-1.0),
        request(goal).softcap(f32::NAN),
    ] {
        let error = new(bad).unwrap_err().to_string();
        assert!(error.contains("expected"), "{error}");
    }
    assert!(Calibrator::new(shape(), 0, request(goal)).is_err());

    refused(new(request(goal)).unwrap(), "expected one of at least 21 tokens");
    let mut short = new(request(goal)).unwrap();
    let layers = [0, 1].map(|seed| Layer::new(20, seed));
    for (layer, text) in layers.iter().enumerate() {
        let [q, k, v] = text.views();
        short.observe_heads(layer, q, k, v).unwrap();
    }
    refused(short, "got 20 at most");
    refused(calibrator(request(goal).exact_window(usize::MAX)), "more than exact window and sinks");

    let mut uneven = calibrator(request(goal));
    let [q, k, v] = layers[0].views();
    uneven.observe_heads(1, q, k, v).unwrap();
    refused(uneven.clone(), "layer 1: expected 640 tokens, as in layer 0, got 660");
    assert!(matches!(
        uneven.observe_heads(2, q, k, v).unwrap_err(),
        CalibrationError::Layer { expected: 2, got: 2 }
    ));
    assert!(uneven.observe_heads(usize::MAX, q, k, v).is_err());
    let error = uneven.observe_heads(0, q, v, q).unwrap_err().to_string();
    assert_eq!(error, "v: expected heads = 2, got 4");
    let nan = vec![f32::NAN; k.tokens() * KV_HEADS * HEAD_DIM];
    let nan = HeadsView::new(&nan, [k.tokens(), KV_HEADS, HEAD_DIM]).unwrap();
    assert!(uneven.observe_heads(0, q, nan, v).unwrap_err().to_string().contains("finite"));
    let error = uneven.output_projection(0, Array2::ones((3, 7)).view()).unwrap_err().to_string();
    assert_eq!(error, "output projection: expected columns = 32, got 7");

    let error = find(request(CalibrationGoal::Kl(1e-15))).unwrap_err();
    assert!(matches!(error, CalibrationError::Unreachable { .. }), "{error}");
    let error = calibrator(request(goal)).find(|_| Err::<Score, _>("out of paper")).unwrap_err();
    assert_eq!(error.to_string(), "out of paper");
    let error = calibrator(request(goal)).find(|_| Ok::<_, AttentionError>(Score::default())).unwrap_err();
    assert_eq!(error.to_string(), "score: expected layers = 2, got 0");
    let nan = calibrator(request(goal))
        .find(|spec| Ok::<_, AttentionError>(Score { kl: f64::NAN, ..engine.score(spec)? }));
    assert!(nan.unwrap_err().to_string().contains("expected a number of nats"));
}

#[test]
fn a_model_of_any_size_can_be_asked_for() {
    let request = request(CalibrationGoal::Kl(0.01));
    let mut calibrator = Calibrator::new(shape(), usize::MAX, request).unwrap();
    let text = Layer::new(64, 3);
    let [q, k, v] = text.views();
    for layer in [0, usize::MAX - 1] {
        calibrator.observe_heads(layer, q, k, v).unwrap();
    }
    let error = calibrator.find(|_| Err::<Score, _>("not reached")).unwrap_err();
    assert!(matches!(error, CalibrationError::Uneven { layer: 1, got: 0, .. }), "{error}");
}

#[test]
fn heads_of_one_channel_are_calibrated_too() {
    let shape = AttentionShape::new(1, 1, 1).unwrap();
    let request = CalibrationRequest::new(CalibrationGoal::ZeroFraction(0.5)).exact_window(16);
    let mut calibrator = Calibrator::new(shape, 1, request).unwrap();
    let mut random = Random::new(1);
    let [q, k, v] = [(); 3].map(|()| random.numbers(100));
    let view = |numbers| HeadsView::new(numbers, [100, 1, 1]).unwrap();
    calibrator.observe_heads(0, view(&q), view(&k), view(&v)).unwrap();
}

#[test]
fn projections_and_streams_that_are_no_numbers_are_refused() {
    let request = CalibrationRequest::new(CalibrationGoal::ZeroFraction(0.5)).exact_window(16);
    let mut calibrator = Calibrator::new(shape(), 1, request).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut projection = Array2::ones((12, HEADS * HEAD_DIM));
        projection[[3, 4]] = bad;
        let error = calibrator.output_projection(0, projection.view()).unwrap_err();
        assert!(matches!(error, CalibrationError::Attention(AttentionError::NotFinite { .. })), "{error}");
        let error = calibrator.observe_residual(0, projection.view()).unwrap_err();
        assert!(matches!(error, CalibrationError::Attention(AttentionError::NotFinite { .. })), "{error}");
    }
}
