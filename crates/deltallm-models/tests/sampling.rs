//! Sampling against probabilities computed by hand.

use deltallm_models::{Sampler, SamplerConfig, SamplingError};
use proptest::prelude::*;

fn config() -> SamplerConfig {
    SamplerConfig::default().with_temperature(1.0).with_seed(7)
}

fn sampler(config: SamplerConfig) -> Sampler {
    Sampler::new(config).unwrap()
}

/// Softmax, then the filters one after the other on a sorted list, in f64. Zero where a token is filtered out.
fn expected_probabilities(logits: &[f32], config: &SamplerConfig) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&t| logits[t] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if config.top_k > 0 {
        order.truncate(config.top_k);
    }
    let weight = |t: usize| (f64::from(logits[t] - logits[order[0]]) / f64::from(config.temperature)).exp();
    let total: f64 = order.iter().map(|&t| weight(t)).sum();
    let mut kept = Vec::new();
    let mut sum = 0.0;
    for &token in &order {
        kept.push(token);
        sum += weight(token) / total;
        if config.top_p < 1.0 && sum >= f64::from(config.top_p) {
            break;
        }
    }
    kept.retain(|&token| weight(token) >= f64::from(config.min_p));
    let total: f64 = kept.iter().map(|&t| weight(t)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for token in kept {
        probabilities[token] = weight(token) / total;
    }
    probabilities
}

/// Draws many tokens and compares their counts with `expected_probabilities` by Pearson's chi-squared.
fn assert_frequencies(logits: &[f32], config: SamplerConfig) {
    const DRAWS: usize = 20_000;
    let expected = expected_probabilities(logits, &config);
    let mut counts = vec![0usize; logits.len()];
    let mut sampler = sampler(config);
    for _ in 0..DRAWS {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    let mut chi_squared = 0.0;
    let mut cells = 0;
    for (&count, &probability) in counts.iter().zip(&expected) {
        if probability == 0.0 {
            assert_eq!(count, 0, "a token that is filtered out was drawn: {config:?}");
        } else {
            let mean = probability * DRAWS as f64;
            chi_squared += (count as f64 - mean).powi(2) / mean;
            cells += 1;
        }
    }
    // Mean and variance of the statistic are f and 2f; five deviations above the mean.
    let freedom = f64::from(cells - 1);
    assert!(chi_squared <= freedom + 5.0 * (2.0 * freedom).sqrt(), "{chi_squared} for {freedom}: {config:?}");
}

const LOGITS: [f32; 10] = [1.0, 0.5, -0.3, 2.0, 0.0, 1.9, -1.0, f32::NEG_INFINITY, 0.7, 1.2];

#[test]
fn frequencies_equal_probabilities() {
    assert_frequencies(&LOGITS, config());
    assert_frequencies(&LOGITS, config().with_temperature(0.5));
    assert_frequencies(&LOGITS, config().with_temperature(3.0));
    assert_frequencies(&LOGITS, config().with_top_k(4));
    assert_frequencies(&LOGITS, config().with_top_p(0.6));
    assert_frequencies(&LOGITS, config().with_min_p(0.3));
    assert_frequencies(&LOGITS, config().with_top_k(6).with_top_p(0.8).with_min_p(0.2).with_temperature(0.8));
}

/// Logits on a coarse grid (ties are common) with some tokens masked; never all.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![4 => (-40i8..40).prop_map(|x| f32::from(x) / 8.0), 1 => Just(f32::NEG_INFINITY)];
    prop::collection::vec(logit, 1..300).prop_map(|mut logits| {
        logits[0] = logits[0].max(-5.0);
        logits
    })
}

proptest! {
    #[test]
    fn top_k_of_one_equals_greedy(logits in logits(), seed: u64) {
        let greedy = sampler(SamplerConfig::default()).sample(&logits).unwrap();
        prop_assert_eq!(sampler(config().with_top_k(1).with_seed(seed)).sample(&logits).unwrap(), greedy);
        let first = logits.iter().position(|&l| logits.iter().all(|&other| other <= l)).unwrap();
        prop_assert_eq!(greedy as usize, first);
    }

    /// What is drawn is always in the expected set, and a set of one is always drawn.
    #[test]
    fn filters_keep_the_expected_set(
        logits in logits(),
        top_k in 0usize..40,
        top_p in 0.05f32..1.0,
        min_p in 0.0f32..1.0,
        which in 1u8..8,
    ) {
        let config = config().with_top_k(if which & 1 > 0 { top_k } else { 0 }).with_top_p(if which & 2 > 0 { top_p } else { 1.0 }).with_min_p(if which & 4 > 0 { min_p } else { 0.0 });
        let expected = expected_probabilities(&logits, &config);
        let mut sampler = sampler(config);
        let mut drawn = vec![false; logits.len()];
        for _ in 0..2000 {
            drawn[sampler.sample(&logits).unwrap() as usize] = true;
        }
        for (token, &probability) in expected.iter().enumerate() {
            prop_assert!(probability > 0.0 || !drawn[token], "token {} is not in the set", token);
            // Missed by chance with probability e^-40.
            prop_assert!(probability < 0.02 || drawn[token], "token {} is in the set", token);
        }
    }

    #[test]
    fn same_seed_same_tokens(logits in logits(), seed: u64) {
        let config = config().with_top_p(0.9).with_seed(seed);
        let (mut one, mut other) = (sampler(config), sampler(config));
        for _ in 0..20 {
            prop_assert_eq!(one.sample(&logits).unwrap(), other.sample(&logits).unwrap());
        }
    }
}

#[test]
fn other_seed_other_tokens() {
    let draw = |seed| {
        let mut sampler = sampler(config().with_seed(seed));
        (0..50).map(|_| sampler.sample(&[0.0; 1000]).unwrap()).collect::<Vec<_>>()
    };
    assert_ne!(draw(1), draw(2));
}

#[test]
fn greedy_takes_the_first_maximum() {
    let mut sampler = sampler(SamplerConfig::default());
    assert_eq!(sampler.sample(&[0.0, 3.0, -1.0, 3.0]).unwrap(), 1);
    assert_eq!(sampler.sample(&[-0.0, 0.0]).unwrap(), 0);
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -5.0]).unwrap(), 1);
    assert_eq!(sampler.sample(&[1.0, f32::INFINITY, f32::INFINITY]).unwrap(), 1);
}

#[test]
fn infinite_logits_share_the_probability() {
    let mut sampler = sampler(config().with_top_p(0.99).with_min_p(0.1).with_top_k(3));
    let mut counts = [0; 4];
    for _ in 0..1000 {
        counts
            [sampler.sample(&[f32::INFINITY, 100.0, f32::INFINITY, f32::NEG_INFINITY]).unwrap() as usize] +=
            1;
    }
    assert_eq!((counts[1], counts[3]), (0, 0));
    assert!((400..600).contains(&counts[0]), "{counts:?}");
}

#[test]
fn the_largest_min_p_is_greedy() {
    let mut sampler = sampler(config().with_min_p(1.0));
    assert_eq!(sampler.sample(&[1.0, 1.5, 1.25]).unwrap(), 1);
}

#[test]
fn tiny_temperature_is_greedy() {
    let mut sampler = sampler(config().with_temperature(f32::MIN_POSITIVE));
    assert_eq!(sampler.sample(&[1.0, 1.5, 1.25]).unwrap(), 1);
}

#[test]
fn repetition_penalty_lowers_logits_once() {
    let mut sampler = sampler(SamplerConfig::default().with_repetition_penalty(2.0));
    assert_eq!(sampler.sample_after(&[3.0, 2.0], &[0]).unwrap(), 1);
    assert_eq!(sampler.sample_after(&[-1.0, -1.5], &[0, 0]).unwrap(), 1);
    // Penalised twice, token 0 would be at 0.75 and lose.
    assert_eq!(sampler.sample_after(&[3.0, 1.0], &[0, 0]).unwrap(), 0);
    assert_eq!(sampler.sample(&[3.0, 2.0]).unwrap(), 0);
}

#[test]
fn empty_logits() {
    assert_eq!(sampler(config()).sample(&[]), Err(SamplingError::EmptyLogits));
}

#[test]
fn nan_logit() {
    for config in [config(), SamplerConfig::default()] {
        let error = sampler(config).sample(&[0.0, f32::NAN, 1.0]);
        assert_eq!(error, Err(SamplingError::NanLogit { token: 1 }));
    }
}

#[test]
fn all_masked() {
    for config in [config(), SamplerConfig::default()] {
        let error = sampler(config).sample(&[f32::NEG_INFINITY; 3]);
        assert_eq!(error, Err(SamplingError::AllMasked { logits: 3 }));
    }
}

#[test]
fn history_out_of_range() {
    let error = sampler(config()).sample_after(&[0.0, 1.0], &[1, 2]);
    assert_eq!(error, Err(SamplingError::HistoryOutOfRange { token: 2, vocab_size: 2 }));
}

#[test]
fn errors_draw_no_random_number() {
    let (mut one, mut other) = (sampler(config()), sampler(config()));
    one.sample(&[f32::NAN]).unwrap_err();
    assert_eq!(one.sample(&LOGITS), other.sample(&LOGITS));
}

#[test]
fn settings_out_of_range_by_name() {
    let good = config();
    for (field, bad) in [
        ("temperature", good.with_temperature(-0.1)),
        ("temperature", good.with_temperature(f32::NAN)),
        ("temperature", good.with_temperature(f32::INFINITY)),
        ("top_p", good.with_top_p(0.0)),
        ("top_p", good.with_top_p(1.1)),
        ("top_p", good.with_top_p(f32::NAN)),
        ("min_p", good.with_min_p(-0.1)),
        ("min_p", good.with_min_p(1.1)),
        ("min_p", good.with_min_p(f32::NAN)),
        ("repetition_penalty", good.with_repetition_penalty(0.0)),
        ("repetition_penalty", good.with_repetition_penalty(f32::NAN)),
    ] {
        let error = Sampler::new(bad).unwrap_err();
        assert!(
            matches!(error, SamplingError::InvalidConfig { field: f, .. } if f == field),
            "{field}: {error}"
        );
        assert!(error.to_string().starts_with(&format!("`{field}`: expected ")), "{error}");
    }
}

#[test]
fn tokens_whose_probabilities_sum_to_top_p_exactly_are_enough() {
    let config = SamplerConfig::default().with_temperature(1.0).with_top_p(0.5);
    for seed in 0..20 {
        let mut sampler = Sampler::new(config.with_seed(seed)).unwrap();
        assert_eq!(sampler.sample(&[0.0, 0.0]).unwrap(), 0);
    }
}

#[test]
fn a_filter_that_removes_nothing_of_weight_changes_no_draw() {
    // All of the weight is in five tokens, not in the order of their ids.
    let mut logits = [-1000.0; 30];
    for (token, logit) in [(3, 0.1), (4, 1.0), (11, 0.7), (20, 1.2), (29, 0.4)] {
        logits[token] = logit;
    }
    let config = SamplerConfig::default().with_temperature(1.0).with_seed(5);
    let mut plain = Sampler::new(config).unwrap();
    let mut filtered = Sampler::new(config.with_top_k(5)).unwrap();
    for draw in 0..100 {
        assert_eq!(filtered.sample(&logits).unwrap(), plain.sample(&logits).unwrap(), "draw {draw}");
    }
}
