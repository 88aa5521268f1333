//! Narrowing: the bound of `docs/method.md`, equation 7, and the bytes that come back.

use deltallm_core::{CoreError, DeltaMatrix, ElementType, MemoryBudget, internal::PagedRows};
use proptest::prelude::*;

mod common;

use common::{bytes, element, keys, push, reconstruction};

fn coded(keys: &[Vec<f32>], theta: f32, budget: &MemoryBudget) -> DeltaMatrix {
    let mut matrix = DeltaMatrix::new(vec![theta; 5], ElementType::F32, budget).unwrap();
    push(&mut matrix, keys);
    matrix
}

/// Asserts that every coded key is within `bound(key)` of the key, up to the rounding of f32 differences.
fn assert_within(matrix: &DeltaMatrix, keys: &[Vec<f32>], bound: impl Fn(f32) -> f32) {
    assert_eq!(matrix.len(), keys.len());
    for (k, khat) in keys.concat().iter().zip(reconstruction(matrix)) {
        let rounding = 4.0 * f32::EPSILON * (k.abs() + khat.abs());
        assert!((k - khat).abs() <= bound(*k) + rounding, "{k} {khat} {}", bound(*k));
    }
}

proptest! {
    #[test]
    fn narrow_keys_are_off_by_the_threshold_and_their_rounding(
        before in 1_usize..200, after in 0_usize..150, seed: u64, theta in 0.0_f32..2.0, bf16: bool,
    ) {
        let element = if bf16 { ElementType::Bf16 } else { ElementType::F16 };
        let keys = keys(5, before + after, seed);
        let budget = MemoryBudget::unlimited();
        let mut matrix = coded(&keys[..before], theta, &budget);
        let rounded: Vec<f32> = reconstruction(&matrix).iter().map(|x| element.round(*x)).collect();
        let wide = matrix.key_bytes();
        matrix = matrix.to_float(element, &budget).unwrap();
        prop_assert_eq!(reconstruction(&matrix), rounded);
        prop_assert!(matrix.key_bytes() < wide);
        prop_assert_eq!(bytes(&matrix), budget.used());
        push(&mut matrix, &keys[before..]);
        // Off by the rounding of what is stored, whose magnitude is the key's or the threshold more.
        let epsilon = if bf16 { 1.0 / 256.0 } else { 1.0 / 2048.0 };
        assert_within(&matrix, &keys, |k| theta + epsilon * (k.abs() + theta));
        prop_assert_eq!(bytes(&matrix), budget.used());
    }

    #[test]
    fn a_cut_after_narrowing_goes_on_as_if_the_later_keys_had_never_been(
        len in 0_usize..=200, seed: u64, element in element(),
    ) {
        let keys = keys(5, 200, seed);
        let narrowed =
            |keys: &[Vec<f32>], budget: &MemoryBudget| coded(keys, 0.7, budget).to_float(element, budget).unwrap();
        let budget = MemoryBudget::unlimited();
        let mut matrix = narrowed(&keys, &budget);
        matrix.truncate(len).unwrap();
        prop_assert_eq!(bytes(&matrix), budget.used());
        let mut fresh = narrowed(&keys[..len], &budget);
        push(&mut matrix, &keys[..100]);
        push(&mut fresh, &keys[..100]);
        prop_assert_eq!(reconstruction(&matrix), reconstruction(&fresh));
        prop_assert_eq!(matrix.nonzeros(), fresh.nonzeros());
    }

    #[test]
    fn growth_is_exact_for_one_key_and_an_upper_bound_for_several(tokens in 0_usize..300, more in 1_usize..200, seed: u64) {
        let keys = keys(5, tokens + more, seed);
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::new(vec![0.7; 5], ElementType::F32, &budget).unwrap();
        for key in &keys[..tokens] {
            let (held, growth) = (budget.used(), matrix.growth(1));
            matrix.push(key).unwrap();
            prop_assert_eq!(budget.used() - held, growth);
        }
        let (held, growth) = (budget.used(), matrix.growth(more));
        push(&mut matrix, &keys[tokens..]);
        prop_assert!(budget.used() - held <= growth, "{} > {growth}", budget.used() - held);
    }

    #[test]
    fn growth_of_rows_is_exact(steps in prop::collection::vec((0_usize..40, 0_usize..40, 0_usize..40), 1..6), page in 1_usize..9) {
        let budget = MemoryBudget::unlimited();
        let mut rows = PagedRows::new(2, ElementType::F32, page, &budget);
        for (more, cut, dropped) in steps {
            let (held, growth) = (budget.used(), rows.growth(more));
            (0..more).for_each(|_| rows.push(&[1.0, 2.0]).unwrap());
            prop_assert_eq!(budget.used() - held, growth);
            rows.drop_before(dropped);
            rows.truncate(rows.len().saturating_sub(cut)).unwrap();
            prop_assert_eq!(budget.used(), rows.held_bytes() + rows.bookkeeping_bytes());
        }
    }
}

#[test]
fn a_key_after_narrowing_is_compared_with_the_reference_as_rounded() {
    let budget = MemoryBudget::unlimited();
    let mut matrix = DeltaMatrix::new(vec![0.5], ElementType::F32, &budget).unwrap();
    matrix.push(&[1000.3]).unwrap();
    matrix = matrix.to_float(ElementType::F16, &budget).unwrap();
    // Within the threshold of what came, and not of what is held.
    matrix.push(&[999.9]).unwrap();
    assert_eq!((reconstruction(&matrix), matrix.nonzeros()), (vec![1000.5, 1000.0], 2));
}

#[test]
fn rows_are_rounded_and_later_rows_too() {
    let budget = MemoryBudget::unlimited();
    let mut rows = PagedRows::new(2, ElementType::F32, 4, &budget);
    let row = |t: usize| [0.1 * t as f32, 7.7];
    (0..11).for_each(|t| rows.push(&row(t)).unwrap());
    rows.drop_before(5);
    let held = rows.held_bytes();
    rows = rows.converted(ElementType::F16, &budget).unwrap();
    assert_eq!(rows.held_bytes(), held / 2);
    (11..20).for_each(|t| rows.push(&row(t)).unwrap());
    let expected: Vec<f32> = (4..20).flat_map(row).map(|x| ElementType::F16.round(x)).collect();
    assert_eq!(rows.read(4..20, &mut Vec::new()), expected);
    assert_eq!(rows.held_bytes() + rows.bookkeeping_bytes(), budget.used());
}

#[test]
fn numbers_too_large_for_the_narrow_type_are_named() {
    let budget = MemoryBudget::unlimited();
    let mut rows = PagedRows::new(3, ElementType::F32, 4, &budget);
    let mut matrix = DeltaMatrix::new(vec![0.5; 3], ElementType::F32, &budget).unwrap();
    for t in 0..150 {
        let key = [1.0, t as f32, if t == 100 { 1e5 } else { 2.0 }];
        rows.push(&key).unwrap();
        matrix.push(&key).unwrap();
    }
    let held = budget.used();
    let errors = [
        rows.converted(ElementType::F16, &budget).unwrap_err(),
        matrix.to_float(ElementType::F16, &budget).unwrap_err(),
    ];
    for error in errors {
        let limit = ElementType::F16.max_magnitude();
        assert_eq!(error, CoreError::NotStorable { channel: 2, element: ElementType::F16, limit, got: 1e5 });
    }
    assert_eq!(budget.used(), held);
    assert!(rows.converted(ElementType::Bf16, &budget).is_ok());
    assert!(matrix.to_float(ElementType::Bf16, &budget).is_ok());
}

#[test]
fn a_key_that_has_been_dropped_may_be_too_large() {
    let budget = MemoryBudget::unlimited();
    let mut matrix = DeltaMatrix::new(vec![0.5], ElementType::F32, &budget).unwrap();
    // The last key of the first block, which the second one begins with.
    (0..70).for_each(|t| matrix.push(&[if t == 63 { 1e5 } else { 1.0 }]).unwrap());
    assert!(matrix.to_float(ElementType::F16, &budget).is_err());
    matrix.drop_before(64);
    let matrix = matrix.to_float(ElementType::F16, &budget).unwrap();
    assert_eq!(reconstruction(&matrix), [1.0; 6]);
}
