//! What several test programs share.
#![allow(dead_code, reason = "each program uses some of it")]

use deltallm_core::{DeltaMatrix, ElementType};
use deltallm_testing::Random;
use proptest::prelude::*;

/// Smooth random keys, `[tokens][channels]`: steps of a random walk, so that some deltas are zero and some are not.
pub(crate) fn keys(channels: usize, tokens: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut random = Random::new(seed);
    let mut key: Vec<f32> = (0..channels).map(|_| 4.0 * random.number()).collect();
    (0..tokens)
        .map(|_| {
            key.iter_mut().for_each(|x| *x += random.number());
            key.clone()
        })
        .collect()
}

/// One of the types in which values are stored without codes.
pub(crate) fn element() -> impl Strategy<Value = ElementType> {
    prop_oneof![Just(ElementType::F32), Just(ElementType::F16), Just(ElementType::Bf16)]
}

pub(crate) fn push(matrix: &mut DeltaMatrix, keys: &[Vec<f32>]) {
    keys.iter().for_each(|key| matrix.push(key).unwrap());
}

/// The keys that a matrix stands for, `[tokens, channels]`.
pub(crate) fn reconstruction(matrix: &DeltaMatrix) -> Vec<f32> {
    let (mut all, mut rows) = (Vec::new(), Vec::new());
    for block in 0..matrix.blocks() {
        matrix.reconstruct(block, &mut rows);
        all.extend_from_slice(&rows);
    }
    all
}

/// All bytes that a matrix accounts for.
pub(crate) fn bytes(matrix: &DeltaMatrix) -> usize {
    matrix.key_bytes() + matrix.bookkeeping_bytes()
}
