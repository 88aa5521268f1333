//! The delta matrix in steps: the threshold is the bound whatever comes, cuts leave no trace, and every byte is accounted for.

use deltallm_core::{
    BLOCK_TOKENS, CachePlan, CoreError, DeltaMatrix, ElementType, HeadThresholds, KeyPlan, KvStore,
    MemoryBudget,
    internal::{DeltaBlock, DeltaCodes, StepCodes},
};
use deltallm_testing::Random;
use proptest::prelude::*;

mod common;

use common::{bytes, push, reconstruction};

/// A random walk with jumps, `[tokens][channels]`, of any size.
fn keys(channels: usize, tokens: usize, seed: u64, size: f32) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let mut key: Vec<f32> = (0..channels).map(|_| 4.0 * random.number()).collect();
    (0..tokens)
        .map(|_| {
            key.iter_mut().for_each(|x| *x = 0.95 * *x + random.number());
            key.iter().map(|x| size * if random.number() > 0.98 { 200.0 * x } else { *x }).collect()
        })
        .collect()
}

fn thresholds(channels: usize, theta: f32, target: bool) -> HeadThresholds {
    // Channels of very different thresholds, the last one exact.
    let start = (0..channels).map(|j| if j + 1 == channels { 0.0 } else { theta * (1 + j % 5) as f32 });
    match target {
        true => HeadThresholds::with_target(start.collect(), 0.6),
        false => start.collect::<Vec<_>>().into(),
    }
}

fn coded(keys: &[Vec<f32>], thresholds: &HeadThresholds) -> DeltaMatrix {
    let mut matrix = DeltaMatrix::in_steps(thresholds.clone(), &MemoryBudget::unlimited()).unwrap();
    push(&mut matrix, keys);
    matrix
}

fn in_steps<'a>(block: &DeltaBlock<'a>) -> StepCodes<'a> {
    let DeltaCodes::Steps(codes) = block.codes else { panic!("codes in steps") };
    codes
}

/// Values that are stored beside their codes.
fn escapes(matrix: &DeltaMatrix) -> usize {
    (0..matrix.blocks()).map(|block| in_steps(&matrix.coded(block).unwrap()).escapes.len()).sum()
}

/// What a reader of the codes alone makes of a matrix: plain loops over [`StepCodes`].
fn decoded(matrix: &DeltaMatrix) -> Vec<f32> {
    let (channels, mut all) = (matrix.channels(), Vec::new());
    for number in 0..matrix.blocks() {
        let block = matrix.coded(number).unwrap();
        let StepCodes { frame, differences, wide, steps, factor, escapes } = in_steps(&block);
        let mut codes = frame.to_vec();
        let mut nibbles = differences.iter().flat_map(|byte| [byte & 15, byte >> 4]);
        let mut wide = wide.iter();
        let words = channels.div_ceil(64);
        for (token, mask) in block.masks.chunks(words).enumerate() {
            for j in 0..channels {
                if mask[j / 64] >> (j % 64) & 1 == 1 {
                    let difference = match nibbles.next().unwrap() {
                        0 => *wide.next().unwrap(),
                        nibble @ 1..8 => nibble as i8,
                        nibble => nibble as i8 - 16,
                    };
                    codes[j] = codes[j].wrapping_add(difference);
                }
                let step = steps[j] * factor;
                let residual: f32 = escapes
                    .iter()
                    .filter(|e| usize::from(e.channel) == j)
                    .filter(|e| (usize::from(e.from)..usize::from(e.to)).contains(&token))
                    .map(|e| e.residual)
                    .sum();
                all.push(if codes[j] == 0 { residual } else { f32::from(codes[j]) * step + residual });
            }
        }
        // At most the other half of the last byte is left.
        assert!(wide.next().is_none() && nibbles.count() <= 1);
    }
    assert!(matrix.coded(matrix.blocks()).is_none());
    all
}

fn sizes() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => Just(1.0_f32), 1 => Just(1e30), 1 => Just(1e-30), 1 => Just(1e-40), 1 => Just(0.0), 1 => Just(1e34)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.min(96)))]

    #[test]
    fn no_key_is_off_by_more_than_its_threshold(
        channels in prop_oneof![Just(64_usize), Just(80), 1_usize..140], tokens in 1_usize..220, seed: u64,
        theta in 0.0_f32..1.0, size in sizes(), scaled: bool,
    ) {
        let keys = keys(channels, tokens, seed, size);
        let thresholds = thresholds(channels, if scaled { theta * size } else { theta }, false);
        let matrix = coded(&keys, &thresholds);
        let khat = reconstruction(&matrix);
        for (t, (key, khat)) in keys.iter().zip(khat.chunks(channels)).enumerate() {
            for ((k, khat), theta) in key.iter().zip(khat).zip(thresholds.start()) {
                prop_assert!((k - khat).abs() <= *theta, "token {t}: {k} {khat} {theta}");
            }
        }
        prop_assert_eq!(decoded(&matrix), khat);
    }

    #[test]
    fn the_bound_of_the_moment_holds_while_thresholds_change(tokens in 1_usize..400, seed: u64, theta in 0.01_f32..1.0) {
        let keys = keys(7, tokens, seed, 1.0);
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::in_steps(thresholds(7, theta, true), &budget).unwrap();
        let mut bounds = Vec::new();
        for key in &keys {
            bounds.extend(matrix.thresholds());
            matrix.push(key).unwrap();
        }
        for ((k, khat), theta) in keys.concat().iter().zip(reconstruction(&matrix)).zip(&bounds) {
            prop_assert!((k - khat).abs() <= *theta, "{k} {khat} {theta}");
        }
        prop_assert_eq!(decoded(&matrix), reconstruction(&matrix));
    }

    #[test]
    fn the_codes_give_back_the_reconstruction(tokens in 1_usize..200, seed: u64, theta in 0.05_f32..1.0, target: bool) {
        let matrix = coded(&keys(70, tokens, seed, 1.0), &thresholds(70, theta, target));
        prop_assert_eq!(decoded(&matrix), reconstruction(&matrix));
        let masks = (0..matrix.blocks()).flat_map(|block| matrix.coded(block).unwrap().masks);
        let nonzeros: usize = masks.map(|word| word.count_ones() as usize).sum();
        prop_assert_eq!(nonzeros, matrix.nonzeros());
    }

    #[test]
    fn a_cut_forgets_and_the_rest_goes_on_as_if_nothing_had_been(
        cuts in prop::collection::vec((0_usize..300, 0_usize..200), 1..6), seed: u64, target: bool,
    ) {
        let budget = MemoryBudget::unlimited();
        let thresholds = thresholds(5, 0.3, target);
        let mut matrix = DeltaMatrix::in_steps(thresholds.clone(), &budget).unwrap();
        let mut history: Vec<Vec<f32>> = Vec::new();
        for (round, (len, more)) in cuts.into_iter().enumerate() {
            let len = len.min(history.len());
            matrix.truncate(len).unwrap();
            prop_assert_eq!(bytes(&matrix), budget.used());
            history.truncate(len);
            for key in keys(5, more + 1, seed.wrapping_add(round as u64), 1.0) {
                let (held, growth) = (budget.used(), matrix.growth(1));
                matrix.push(&key).unwrap();
                prop_assert_eq!(budget.used() - held, growth);
                history.push(key);
            }
            let fresh = coded(&history, &thresholds);
            prop_assert_eq!(reconstruction(&matrix), reconstruction(&fresh));
            prop_assert_eq!((matrix.nonzeros(), escapes(&matrix)), (fresh.nonzeros(), escapes(&fresh)));
            prop_assert_eq!(decoded(&matrix), reconstruction(&matrix));
            prop_assert_eq!(bytes(&matrix), budget.used());
        }
    }

    #[test]
    fn growth_of_several_keys_is_an_upper_bound(tokens in 0_usize..200, more in 1_usize..200, seed: u64, theta in 0.0_f32..1.0) {
        let keys = keys(5, tokens + more, seed, 1.0);
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::in_steps(vec![theta; 5], &budget).unwrap();
        push(&mut matrix, &keys[..tokens]);
        let (held, growth) = (budget.used(), matrix.growth(more));
        push(&mut matrix, &keys[tokens..]);
        prop_assert!(budget.used() - held <= growth, "{} > {growth}", budget.used() - held);
    }

    #[test]
    fn a_converted_matrix_is_off_by_the_threshold_and_half_a_step(
        before in 0_usize..200, after in 0_usize..150, seed: u64, theta in 0.01_f32..1.0, target: bool,
    ) {
        let keys = keys(9, before + after, seed, 1.0);
        let (budget, thresholds) = (MemoryBudget::unlimited(), thresholds(9, theta, target));
        let mut wide = DeltaMatrix::new(thresholds, ElementType::F32, &budget).unwrap();
        let mut bounds = Vec::new();
        for key in &keys[..before] {
            bounds.extend(wide.thresholds());
            wide.push(key).unwrap();
        }
        let mut matrix = wide.to_steps(&budget).unwrap();
        prop_assert_eq!((matrix.len(), matrix.nonzeros()), (wide.len(), wide.nonzeros()));
        prop_assert_eq!(matrix.thresholds(), wide.thresholds());
        for (wide, narrow) in bounds.chunks(9).zip(reconstruction(&wide).chunks(9)).zip(reconstruction(&matrix).chunks(9)) {
            for ((theta, wide), narrow) in wide.0.iter().zip(wide.1).zip(narrow) {
                prop_assert!(target || (narrow - wide).abs() <= 1.001 * theta, "{narrow} {wide} {theta}");
            }
        }
        drop(wide);
        for key in &keys[before..] {
            bounds.extend(matrix.thresholds());
            matrix.push(key).unwrap();
        }
        let khat = reconstruction(&matrix);
        for ((k, khat), theta) in keys.concat().iter().zip(&khat).zip(&bounds).skip(9 * before) {
            prop_assert!((k - khat).abs() <= *theta, "{k} {khat} {theta}");
        }
        prop_assert_eq!(bytes(&matrix), budget.used());
        prop_assert_eq!(decoded(&matrix), khat);
    }
}

#[test]
fn errors_of_a_conversion_do_not_add_up_from_block_to_block() {
    // The first channel is sent once and then stands in key frames only. The others change the thresholds.
    let mut keys = keys(8, 8 * BLOCK_TOKENS, 7, 1.0);
    keys.iter_mut().for_each(|key| key[0] = 3.3);
    let budget = MemoryBudget::unlimited();
    let mut wide =
        DeltaMatrix::new(HeadThresholds::with_target(vec![0.5; 8], 0.6), ElementType::F32, &budget).unwrap();
    push(&mut wide, &keys);
    let matrix = wide.to_steps(&budget).unwrap();
    let mut rows = Vec::new();
    for number in 0..matrix.blocks() {
        let StepCodes { steps, factor, .. } = in_steps(&matrix.coded(number).unwrap());
        matrix.reconstruct(number, &mut rows);
        let (step, got) = (steps[0] * factor, rows[0]);
        assert!((got - 3.3).abs() <= 0.501 * step, "block {number}: {got}, with a step of {step}");
    }
}

#[test]
fn every_cut_around_block_edges_equals_a_fresh_start() {
    let keys = keys(3, 3 * BLOCK_TOKENS + 1, 5, 1.0);
    for target in [false, true] {
        let thresholds = thresholds(3, 0.4, target);
        let whole = reconstruction(&coded(&keys, &thresholds));
        for len in 0..keys.len() {
            let budget = MemoryBudget::unlimited();
            let mut matrix = DeltaMatrix::in_steps(thresholds.clone(), &budget).unwrap();
            push(&mut matrix, &keys);
            matrix.truncate(len).unwrap();
            push(&mut matrix, &keys[len..]);
            assert_eq!(reconstruction(&matrix), whole, "cut at {len}");
        }
    }
}

#[test]
fn an_escape_that_ended_with_a_key_that_is_gone_goes_on() {
    let far = [1e6];
    let keys: Vec<Vec<f32>> = vec![vec![0.0], far.to_vec(), vec![0.0]];
    let mut matrix = coded(&keys, &vec![0.5].into());
    matrix.truncate(2).unwrap();
    // The channel rests, and is read from where it was sent.
    matrix.push(&far).unwrap();
    assert_eq!(reconstruction(&matrix), [0.0, far[0], far[0]]);
    assert_eq!(decoded(&matrix), reconstruction(&matrix));
}

#[test]
fn a_step_below_the_normal_numbers_has_no_codes() {
    for theta in [5e-39, 1e-44] {
        let matrix = coded(&[vec![1e-38]], &vec![theta].into());
        assert_eq!(escapes(&matrix), 1, "{theta}");
        assert_eq!(reconstruction(&matrix), [1e-38]);
    }
}

/// Keys of which all channels escape have made room for themselves, which must not outlive them.
#[test]
fn bytes_after_a_cut_are_those_of_keys_that_came_one_by_one() {
    let channels = 6;
    let thresholds = thresholds(channels, 0.3, false);
    let calm = keys(channels, 300, 5, 1.0);
    let wild = keys(channels, 300, 6, 1e6);
    let (budget, free) = (MemoryBudget::unlimited(), MemoryBudget::unlimited());
    for (before, gone) in
        [0, 1, 40, 63, 64, 65, 130, 200].into_iter().flat_map(|b| [1, 5, 64, 90].map(|g| (b, g)))
    {
        let mut fresh = DeltaMatrix::in_steps(thresholds.clone(), &free).unwrap();
        push(&mut fresh, &calm[..before]);
        let mut cut = DeltaMatrix::in_steps(thresholds.clone(), &budget).unwrap();
        push(&mut cut, &calm[..before]);
        push(&mut cut, &wild[..gone]);
        cut.truncate(before).unwrap();
        for key in &calm[before..] {
            let what = format!("{gone} gone after {before}, {} now", cut.len());
            // There is never more than a key takes that comes to a cache without a past, and what it will take then is known.
            assert!(cut.is_empty() || bytes(&cut) <= bytes(&fresh), "{what}");
            assert_eq!(budget.used(), bytes(&cut), "{what}");
            let next = fresh.bytes_with_next();
            assert_eq!(cut.bytes_with_next(), next, "{what}");
            fresh.push(key).unwrap();
            cut.push(key).unwrap();
            assert_eq!(bytes(&fresh), next, "{what}");
        }
    }
    assert_eq!(budget.used(), 0);
}

#[test]
fn keys_that_never_move_cost_their_frames_alone() {
    let budget = MemoryBudget::unlimited();
    // Too far out for a code in the second channel: one escape in every block, from the frame on.
    let mut matrix = DeltaMatrix::in_steps(vec![0.5, 0.01], &budget).unwrap();
    (0..256).for_each(|_| matrix.push(&[3.25, 7.0]).unwrap());
    assert_eq!((matrix.nonzeros(), escapes(&matrix)), (2, 4));
    for row in reconstruction(&matrix).chunks(2) {
        assert!((row[0] - 3.25).abs() <= 0.25 && row[1] == 7.0, "{row:?}");
    }
    let block = matrix.coded(2).unwrap();
    let StepCodes { frame, escapes, .. } = in_steps(&block);
    assert_eq!(frame[1], 0);
    assert_eq!((escapes[0].channel, escapes[0].from, escapes[0].to, escapes[0].residual), (1, 0, 64, 7.0));
}

#[test]
fn a_plan_is_exact_when_what_it_expects_of_the_deltas_is() {
    for every in [0, 4, 2] {
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::in_steps(vec![1.0; 8], &budget).unwrap();
        for t in 0..1000_usize {
            // Half of the channels change at every step: two of them by more than 4 bits hold, and one out of reach at every fourth
            // or second key.
            let far = if every > 0 && t % every == 1 { 1000.0 } else { 0.0 };
            let key: Vec<f32> = (0..8)
                .map(|j| match j {
                    0 => 3.0 * (1 + t % 2) as f32 + far,
                    2 => 3.0 * (1 + t % 2) as f32,
                    4 | 6 => 10.0 * (1 + t % 2) as f32,
                    _ => 0.0,
                })
                .collect();
            matrix.push(&key).unwrap();
            let escapes = if every > 0 { 1.0 / every as f64 } else { 0.0 };
            let keys = KeyPlan::Delta { zero_fraction: 0.5, wide: 0.5, escapes, window: 0, sinks: 0 };
            let plan = CachePlan::new(1, 8, KvStore::Compact, keys).footprint(t + 1);
            // The open block's room for escapes has its size once a block has been full.
            if every == 0 || t >= BLOCK_TOKENS {
                assert_eq!(plan.keys, matrix.key_bytes(), "token {t}, escapes {escapes}");
            }
        }
    }
}

#[test]
fn an_exhausted_budget_refuses_the_key_and_keeps_the_rest() {
    let keys = keys(8, 2000, 3, 1.0);
    for limit in (3000..9000).step_by(97) {
        let budget = MemoryBudget::new(limit);
        let mut matrix = DeltaMatrix::in_steps(vec![0.05; 8], &budget).unwrap();
        let stored = keys.iter().take_while(|key| matrix.push(key).is_ok()).count();
        assert!(stored < keys.len() && matrix.len() == stored);
        let expected = coded(&keys[..stored], &vec![0.05; 8].into());
        assert_eq!(reconstruction(&matrix), reconstruction(&expected));
        assert_eq!(bytes(&matrix), budget.used());
        assert!(matrix.push(&keys[stored]).is_err(), "still refused");
        matrix.truncate(stored / 2).unwrap();
        matrix.push(&keys[stored / 2]).unwrap();
    }
}

#[test]
fn bad_keys_and_too_many_channels_are_refused() {
    let budget = MemoryBudget::unlimited();
    let mut matrix = DeltaMatrix::in_steps(vec![0.5; 2], &budget).unwrap();
    for t in 0..64 {
        matrix.push(&[1.0, t as f32]).unwrap();
    }
    let before = reconstruction(&matrix);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(matrix.push(&[1.0, bad]), Err(CoreError::NotStorable { channel: 1, .. })));
    }
    assert!(matrix.push(&[1.0]).is_err());
    assert_eq!(reconstruction(&matrix), before);
    let error = DeltaMatrix::in_steps(vec![0.5; 65537], &budget).unwrap_err();
    assert_eq!(error, CoreError::Channels { expected: 65536, got: 65537 });
}
