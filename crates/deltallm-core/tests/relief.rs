//! Narrowing and coarsening: the bounds of `docs/method.md`, equations 7 and 8, and the bytes that come back.

use deltallm_core::{
    BLOCK_TOKENS, Charge, CoreError, DeltaMatrix, ElementType, HeadThresholds, MemoryBudget, PagedRows,
};
use proptest::prelude::*;

/// A random walk, `[tokens][channels]`.
fn keys(channels: usize, tokens: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut key: Vec<f32> = (0..channels).map(|_| 4.0 * random()).collect();
    (0..tokens)
        .map(|_| {
            key.iter_mut().for_each(|x| *x += random());
            key.clone()
        })
        .collect()
}

fn coded(keys: &[Vec<f32>], theta: f32, element: ElementType, charge: &mut Charge) -> DeltaMatrix {
    let mut matrix = DeltaMatrix::new(vec![theta; keys[0].len()], element).unwrap();
    push(&mut matrix, keys, charge);
    matrix
}

fn push(matrix: &mut DeltaMatrix, keys: &[Vec<f32>], charge: &mut Charge) {
    keys.iter().for_each(|key| matrix.push(key, charge).unwrap());
}

fn reconstruction(matrix: &DeltaMatrix) -> Vec<f32> {
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    for block in 0..matrix.blocks() {
        matrix.reconstruct(block, &mut rows);
        all.extend_from_slice(&rows);
    }
    all
}

fn bytes(matrix: &DeltaMatrix) -> usize {
    matrix.key_bytes() + matrix.bookkeeping_bytes()
}

/// Asserts that every coded key is within `bound(key)` of the key, up to the rounding of f32 differences.
fn assert_within(matrix: &DeltaMatrix, keys: &[Vec<f32>], bound: impl Fn(f32) -> f32) {
    assert_eq!(matrix.len(), keys.len());
    for (k, khat) in keys.concat().iter().zip(reconstruction(matrix)) {
        let rounding = 4.0 * f32::EPSILON * (k.abs() + khat.abs());
        assert!((k - khat).abs() <= bound(*k) + rounding, "{k} {khat} {}", bound(*k));
    }
}

fn element() -> impl Strategy<Value = ElementType> {
    prop_oneof![Just(ElementType::F32), Just(ElementType::F16), Just(ElementType::Bf16)]
}

proptest! {
    #[test]
    fn coarse_keys_stay_within_the_raised_threshold_and_take_no_more_room(
        before in 1_usize..200, after in 0_usize..150, seed: u64, theta in 0.0_f32..2.0,
        factors in prop::collection::vec(1.0_f32..4.0, 1..4),
    ) {
        let keys = keys(5, before + after, seed);
        let budget = MemoryBudget::unlimited();
        let mut charge = budget.charge();
        let mut matrix = coded(&keys[..before], theta, ElementType::F32, &mut charge);
        let mut raised = theta;
        for factor in factors {
            let held = (matrix.nonzeros(), bytes(&matrix));
            matrix.coarsen(factor, &mut charge).unwrap();
            raised *= factor;
            prop_assert!(matrix.nonzeros() <= held.0 && bytes(&matrix) <= held.1);
            prop_assert_eq!(bytes(&matrix), budget.used());
            assert_within(&matrix, &keys[..before], |_| raised);
        }
        push(&mut matrix, &keys[before..], &mut charge);
        assert_within(&matrix, &keys, |_| raised);
        prop_assert_eq!(bytes(&matrix), budget.used());
    }

    #[test]
    fn a_factor_of_two_or_less_leaves_the_coded_keys_alone(tokens in 1_usize..200, seed: u64, theta in 0.0_f32..2.0, factor in 1.0_f32..=2.0) {
        let keys = keys(5, tokens, seed);
        let mut charge = MemoryBudget::unlimited().charge();
        let mut matrix = coded(&keys, theta, ElementType::F32, &mut charge);
        let before = reconstruction(&matrix);
        matrix.coarsen(factor, &mut charge).unwrap();
        prop_assert_eq!(reconstruction(&matrix), before);
    }

    #[test]
    fn coarsening_in_a_16_bit_store_adds_no_rounding_of_its_own(tokens in 1_usize..200, seed: u64, element in element()) {
        let keys = keys(70, tokens, seed);
        let mut charge = MemoryBudget::unlimited().charge();
        let mut matrix = coded(&keys, 0.7, element, &mut charge);
        matrix.coarsen(3.0, &mut charge).unwrap();
        assert_within(&matrix, &keys, |k| 1.4 + f32::max(0.7, (k - element.round(k)).abs()));
    }

    #[test]
    fn coarsening_is_coding_the_reconstruction(tokens in 1_usize..200, seed: u64, theta in 0.0_f32..2.0) {
        let keys = keys(5, tokens, seed);
        let mut charge = MemoryBudget::unlimited().charge();
        let mut matrix = coded(&keys, theta, ElementType::F32, &mut charge);
        let rows: Vec<Vec<f32>> = reconstruction(&matrix).chunks(5).map(<[f32]>::to_vec).collect();
        let expected = coded(&rows, 1.5 * theta, ElementType::F32, &mut charge);
        matrix.coarsen(2.5, &mut charge).unwrap();
        prop_assert_eq!(reconstruction(&matrix), reconstruction(&expected));
        prop_assert_eq!(matrix.nonzeros(), expected.nonzeros());
    }

    #[test]
    fn narrow_keys_are_off_by_the_threshold_and_their_rounding(
        before in 1_usize..200, after in 0_usize..150, seed: u64, theta in 0.0_f32..2.0, bf16: bool,
    ) {
        let element = if bf16 { ElementType::Bf16 } else { ElementType::F16 };
        let keys = keys(5, before + after, seed);
        let budget = MemoryBudget::unlimited();
        let mut charge = budget.charge();
        let mut matrix = coded(&keys[..before], theta, ElementType::F32, &mut charge);
        let rounded: Vec<f32> = reconstruction(&matrix).iter().map(|x| element.round(*x)).collect();
        let wide = matrix.key_bytes();
        matrix.narrow(element, &mut charge).unwrap();
        prop_assert_eq!(reconstruction(&matrix), rounded);
        prop_assert!(matrix.key_bytes() < wide);
        prop_assert_eq!(bytes(&matrix), budget.used());
        push(&mut matrix, &keys[before..], &mut charge);
        // Off by the rounding of what is stored, whose magnitude is the key's or the threshold more.
        let epsilon = if bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        assert_within(&matrix, &keys, |k| theta + epsilon * (k.abs() + theta));
        prop_assert_eq!(bytes(&matrix), budget.used());
    }

    #[test]
    fn a_cut_after_relief_goes_on_as_if_the_later_keys_had_never_been(
        len in 0_usize..=200, seed: u64, element in element(), narrow: bool,
    ) {
        let keys = keys(5, 200, seed);
        let relieve = |keys: &[Vec<f32>], charge: &mut Charge| {
            let mut matrix = DeltaMatrix::new(vec![0.7; 5], element).unwrap();
            push(&mut matrix, keys, charge);
            matrix.coarsen(2.5, charge).unwrap();
            if narrow {
                matrix.narrow(ElementType::F16, charge).unwrap();
            }
            matrix
        };
        let budget = MemoryBudget::unlimited();
        let mut charge = budget.charge();
        let mut matrix = relieve(&keys, &mut charge);
        matrix.truncate(len, &mut charge).unwrap();
        prop_assert_eq!(bytes(&matrix), budget.used());
        let mut fresh = relieve(&keys[..len], &mut charge);
        push(&mut matrix, &keys[..100], &mut charge);
        push(&mut fresh, &keys[..100], &mut charge);
        prop_assert_eq!(reconstruction(&matrix), reconstruction(&fresh));
        prop_assert_eq!(matrix.nonzeros(), fresh.nonzeros());
    }

    #[test]
    fn growth_is_exact_for_one_key_and_an_upper_bound_for_several(tokens in 0_usize..300, more in 1_usize..200, seed: u64) {
        let keys = keys(5, tokens + more, seed);
        let mut charge = MemoryBudget::unlimited().charge();
        let mut matrix = DeltaMatrix::new(vec![0.7; 5], ElementType::F32).unwrap();
        for key in &keys[..tokens] {
            let (held, growth) = (charge.bytes(), matrix.growth(1));
            matrix.push(key, &mut charge).unwrap();
            prop_assert_eq!(charge.bytes() - held, growth);
        }
        let (held, growth) = (charge.bytes(), matrix.growth(more));
        push(&mut matrix, &keys[tokens..], &mut charge);
        prop_assert!(charge.bytes() - held <= growth, "{} > {growth}", charge.bytes() - held);
    }

    #[test]
    fn growth_of_rows_is_exact(steps in prop::collection::vec((0_usize..40, 0_usize..40, 0_usize..40), 1..6), page in 1_usize..9) {
        let mut charge = MemoryBudget::unlimited().charge();
        let mut rows = PagedRows::new(2, ElementType::F32, page);
        for (more, cut, dropped) in steps {
            let (held, growth) = (charge.bytes(), rows.growth(more));
            (0..more).for_each(|_| rows.push(&[1.0, 2.0], &mut charge).unwrap());
            prop_assert_eq!(charge.bytes() - held, growth);
            rows.drop_before(dropped, &mut charge);
            rows.truncate(rows.len().saturating_sub(cut), &mut charge).unwrap();
            prop_assert_eq!(charge.bytes(), rows.held_bytes() + rows.bookkeeping_bytes());
        }
    }
}

#[test]
fn rows_are_rounded_in_place_and_later_rows_too() {
    let budget = MemoryBudget::unlimited();
    let mut charge = budget.charge();
    let mut rows = PagedRows::new(2, ElementType::F32, 4);
    let row = |t: usize| [0.1 * t as f32, 7.7];
    (0..11).for_each(|t| rows.push(&row(t), &mut charge).unwrap());
    rows.drop_before(5, &mut charge);
    let held = rows.held_bytes();
    rows.narrow(ElementType::F16, &mut charge).unwrap();
    assert_eq!(rows.held_bytes(), held / 2);
    (11..20).for_each(|t| rows.push(&row(t), &mut charge).unwrap());
    let expected: Vec<f32> = (4..20).flat_map(row).map(|x| ElementType::F16.round(x)).collect();
    assert_eq!(rows.read(4..20, &mut Vec::new()), expected);
    assert_eq!(rows.held_bytes() + rows.bookkeeping_bytes(), budget.used());
    // As narrow already: nothing to do, whatever the type.
    rows.narrow(ElementType::Bf16, &mut charge).unwrap();
    rows.narrow(ElementType::F32, &mut charge).unwrap();
    assert_eq!(rows.read(4..20, &mut Vec::new()), expected);
}

#[test]
fn numbers_too_large_for_the_narrow_type_are_named_and_nothing_changes() {
    let mut charge = MemoryBudget::unlimited().charge();
    let mut rows = PagedRows::new(3, ElementType::F32, 4);
    let mut matrix = DeltaMatrix::new(vec![0.5; 3], ElementType::F32).unwrap();
    for t in 0..150 {
        let key = [1.0, t as f32, if t == 100 { 1e5 } else { 2.0 }];
        rows.push(&key, &mut charge).unwrap();
        matrix.push(&key, &mut charge).unwrap();
    }
    let (held, before) = (charge.bytes(), reconstruction(&matrix));
    let errors = [
        rows.narrow(ElementType::F16, &mut charge).unwrap_err(),
        matrix.narrow(ElementType::F16, &mut charge).unwrap_err(),
    ];
    for error in errors {
        let limit = ElementType::F16.max_magnitude();
        assert_eq!(error, CoreError::NotStorable { channel: 2, element: ElementType::F16, limit, got: 1e5 });
    }
    assert_eq!(charge.bytes(), held);
    assert_eq!(reconstruction(&matrix), before);
    assert_eq!(rows.read(100..101, &mut Vec::new()), [1.0, 100.0, 1e5]);
    rows.narrow(ElementType::Bf16, &mut charge).unwrap();
    matrix.narrow(ElementType::Bf16, &mut charge).unwrap();
}

#[test]
fn thresholds_are_not_lowered_and_not_raised_beyond_f32() {
    let mut charge = MemoryBudget::unlimited().charge();
    let keys = keys(2, 2 * BLOCK_TOKENS, 3);
    let mut matrix = coded(&keys, 3e38, ElementType::F32, &mut charge);
    for bad in [0.5, -1.0, f32::NAN, f32::INFINITY] {
        let error = matrix.coarsen(bad, &mut charge).unwrap_err();
        assert!(matches!(error, CoreError::Factor { .. }), "{error}");
    }
    assert!(matches!(matrix.coarsen(2.0, &mut charge), Err(CoreError::Threshold { index: 0, .. })));
    matrix.coarsen(1.0, &mut charge).unwrap();
    assert_eq!(matrix.len(), keys.len());
}

#[test]
fn what_a_raised_target_has_saved_is_not_spent_again() {
    let keys = keys(32, 3000, 9);
    let head = HeadThresholds::with_target(vec![0.5; 32], 0.4);
    let mut charge = MemoryBudget::unlimited().charge();
    let mut matrix = DeltaMatrix::new(head, ElementType::F32).unwrap();
    let zeros = |matrix: &DeltaMatrix| 1.0 - matrix.nonzeros() as f64 / (matrix.len() * 32) as f64;
    push(&mut matrix, &keys[..1000], &mut charge);
    assert!((zeros(&matrix) - 0.4).abs() < 0.02, "{}", zeros(&matrix));
    matrix.coarsen(3.0, &mut charge).unwrap();
    let raised = zeros(&matrix);
    assert!(raised > 0.45, "{raised}");
    push(&mut matrix, &keys[1000..], &mut charge);
    assert!((zeros(&matrix) - raised).abs() < 0.02, "{} {raised}", zeros(&matrix));
}
