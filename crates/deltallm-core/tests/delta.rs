//! Properties of the delta encoder and matrix against the definition in f64.

use deltallm_core::{
    BLOCK_TOKENS, DeltaMatrix, ElementType, MemoryBudget,
    internal::{DeltaCodes, FloatCodes, TokenStore},
};
use half::{bf16, f16};
use proptest::prelude::*;

mod common;

use common::{bytes, element, keys, push, reconstruction};

fn coded(keys: &[Vec<f32>], theta: f32, element: ElementType) -> DeltaMatrix {
    let budget = MemoryBudget::unlimited();
    let mut matrix = DeltaMatrix::new(vec![theta; keys[0].len()], element, &budget).unwrap();
    push(&mut matrix, keys);
    matrix
}

/// What a reader of the blocks as they are held makes of a matrix, in plain loops: the keys, and how many values it has read.
fn decoded(matrix: &DeltaMatrix) -> (Vec<f32>, usize) {
    let (channels, mut all, mut nonzeros) = (matrix.channels(), Vec::new(), 0);
    for number in 0..matrix.blocks() {
        let block = matrix.coded(number).unwrap();
        let wide = |row: &[f16]| row.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let wide_bf16 = |row: &[bf16]| row.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (mut key, values) = match block.codes {
            DeltaCodes::F32(FloatCodes { frame, values }) => (frame.to_vec(), values.to_vec()),
            DeltaCodes::F16(FloatCodes { frame, values }) => (wide(frame), wide(values)),
            DeltaCodes::Bf16(FloatCodes { frame, values }) => (wide_bf16(frame), wide_bf16(values)),
            other => panic!("{other:?}"),
        };
        nonzeros += values.len();
        let mut values = values.into_iter();
        for mask in block.masks.chunks(channels.div_ceil(64)) {
            for j in (0..channels).filter(|j| mask[j / 64] >> (j % 64) & 1 == 1) {
                key[j] = values.next().unwrap();
            }
            all.extend_from_slice(&key);
        }
        assert!(values.next().is_none());
    }
    assert!(matrix.coded(matrix.blocks()).is_none());
    (all, nonzeros)
}

/// Equation 1 of `docs/method.md`, for storage without rounding: the reconstruction and the count of nonzeros.
fn definition(keys: &[Vec<f32>], theta: f64) -> (Vec<f64>, usize) {
    let mut reference: Vec<f64> = keys[0].iter().map(|x| f64::from(*x)).collect();
    let mut nonzeros = reference.iter().filter(|x| **x != 0.0).count();
    let mut all = reference.clone();
    for key in &keys[1..] {
        for (r, k) in reference.iter_mut().zip(key) {
            if (f64::from(*k) - *r).abs() > theta {
                *r = f64::from(*k);
                nonzeros += 1;
            }
        }
        all.extend_from_slice(&reference);
    }
    (all, nonzeros)
}

proptest! {
    #[test]
    fn f32_coding_is_the_definition(channels in 1_usize..130, tokens in 1_usize..200, seed: u64, theta in 0.0_f32..2.0) {
        let keys = keys(channels, tokens, seed);
        let matrix = coded(&keys, theta, ElementType::F32);
        let (expected, nonzeros) = definition(&keys, f64::from(theta));
        prop_assert_eq!(reconstruction(&matrix).iter().map(|x| f64::from(*x)).collect::<Vec<_>>(), expected);
        prop_assert_eq!(matrix.nonzeros(), nonzeros);
    }

    #[test]
    fn the_bound_holds_in_every_storage_type(tokens in 1_usize..200, seed: u64, theta in 0.0_f32..2.0, element in element()) {
        let keys = keys(5, tokens, seed);
        let matrix = coded(&keys, theta, element);
        for (k, khat) in keys.concat().iter().zip(reconstruction(&matrix)) {
            let rounding = (k - element.round(*k)).abs();
            prop_assert!((k - khat).abs() <= theta.max(rounding), "{k} {khat} {theta}");
        }
    }

    #[test]
    fn theta_zero_stores_what_the_element_type_stores(seed: u64, element in element()) {
        let keys = keys(7, 150, seed);
        let expected: Vec<f32> = keys.concat().iter().map(|k| element.round(*k)).collect();
        prop_assert_eq!(reconstruction(&coded(&keys, 0.0, element)), expected);
    }

    #[test]
    fn masks_and_values_give_back_the_reconstruction(channels in 1_usize..130, tokens in 1_usize..200, seed: u64, theta in 0.0_f32..2.0, element in element()) {
        let matrix = coded(&keys(channels, tokens, seed), theta, element);
        let (keys, nonzeros) = decoded(&matrix);
        prop_assert_eq!(keys, reconstruction(&matrix));
        prop_assert_eq!(nonzeros, matrix.nonzeros());
    }

    #[test]
    fn a_cut_forgets_and_the_rest_goes_on_as_if_nothing_had_been(
        cuts in prop::collection::vec((0_usize..300, 0_usize..200), 1..6), seed: u64, element in element()
    ) {
        let budget = MemoryBudget::unlimited();
        let mut matrix = DeltaMatrix::new(vec![0.7; 5], element, &budget).unwrap();
        let mut history: Vec<Vec<f32>> = Vec::new();
        for (round, (len, more)) in cuts.into_iter().enumerate() {
            let len = len.min(history.len());
            matrix.truncate(len).unwrap();
            history.truncate(len);
            for key in keys(5, more + 1, seed.wrapping_add(round as u64)) {
                matrix.push(&key).unwrap();
                history.push(key);
            }
            let fresh = coded(&history, 0.7, element);
            prop_assert_eq!(reconstruction(&matrix), reconstruction(&fresh));
            prop_assert_eq!(matrix.nonzeros(), fresh.nonzeros());
            prop_assert_eq!(bytes(&matrix), budget.used());
        }
    }
}

#[test]
fn every_cut_around_block_edges_equals_a_fresh_start() {
    let keys = keys(3, 3 * BLOCK_TOKENS + 1, 5);
    for len in 0..keys.len() {
        let mut matrix = coded(&keys, 0.7, ElementType::F32);
        matrix.truncate(len).unwrap();
        assert_eq!(matrix.len(), len);
        push(&mut matrix, &keys[len..]);
        assert_eq!(
            reconstruction(&matrix),
            reconstruction(&coded(&keys, 0.7, ElementType::F32)),
            "cut at {len}"
        );
    }
    assert!(coded(&keys, 0.7, ElementType::F32).truncate(keys.len() + 1).is_err());
}

#[test]
fn a_cut_to_nothing_leaves_no_key_to_compare_with() {
    let budget = MemoryBudget::unlimited();
    for mut matrix in [
        DeltaMatrix::new(vec![2.0; 2], ElementType::F32, &budget).unwrap(),
        DeltaMatrix::in_steps(vec![2.0; 2], &budget).unwrap(),
    ] {
        matrix.push(&[2.0, 2.0]).unwrap();
        matrix.truncate(0).unwrap();
        matrix.push(&[4.0, 0.0]).unwrap();
        assert_eq!((reconstruction(&matrix), matrix.nonzeros()), (vec![4.0, 0.0], 1));
    }
}

#[test]
fn an_exhausted_budget_refuses_the_key_and_keeps_the_rest() {
    let keys = keys(8, 1000, 3);
    let budget = MemoryBudget::new(20_000);
    let mut matrix = DeltaMatrix::new(vec![0.3; 8], ElementType::F32, &budget).unwrap();
    let stored = keys.iter().take_while(|key| matrix.push(key).is_ok()).count();
    assert!(stored > BLOCK_TOKENS && stored < keys.len(), "{stored}");
    assert_eq!(matrix.len(), stored);
    assert_eq!(reconstruction(&matrix), reconstruction(&coded(&keys[..stored], 0.3, ElementType::F32)));
    assert!(budget.used() <= 20_000);
    assert!(matrix.push(&keys[stored]).is_err(), "still refused");
    matrix.truncate(10).unwrap();
    matrix.push(&keys[10]).unwrap();
}

#[test]
fn a_copy_shares_nothing_and_charges_the_same_account_once_it_grows() {
    let budget = MemoryBudget::unlimited();
    let mut keys = DeltaMatrix::in_steps(vec![0.5; 4], &budget).unwrap();
    let mut empty = keys.copied().unwrap();
    (0..200).try_for_each(|t| keys.push(&[t as f32; 4])).unwrap();
    let (used, copy) = (budget.used(), keys.copied().unwrap());
    assert_eq!((budget.used(), TokenStore::unpaid(&copy), copy.len()), (used, used, 200));
    drop(copy);
    assert!(!keys.is_shared() && budget.used() == used);
    empty.push(&[1.0; 4]).unwrap();
    assert_eq!(budget.used(), used + empty.key_bytes() + empty.bookkeeping_bytes());
}
