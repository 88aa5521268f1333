//! The micro-kernels, written once over `fearless_simd`'s vectors and compiled for every instruction set.
//!
//! All of them work on a *tile*: queries side by side in the lanes of a vector. A matrix with one row per channel or
//! per key and one column per query lane is "lane-contiguous": `[rows, lanes]`. Reading order: [`matmul`] (both
//! products of attention), [`delta`] (the sparse product), [`softmax`].
//!
//! Functions take the [`Isa`] first. Faster kernels for one instruction set (dot products of 16 or 8 bits, fused skip tests) belong
//! beside these files, and are chosen where it is matched: [`Pairs::of`], [`Filter::of`].

pub(crate) mod decode;
pub(crate) mod delta;
mod filter;
pub(crate) mod matmul;
mod pairs;
pub(crate) mod softmax;
mod stream;
pub(crate) mod transpose;

use deltallm_core::ElementType;
use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};

pub(crate) use filter::{Filter, KeyCodes, QueryCodes};
pub(crate) use pairs::{PairKeys, PairQueries, PairValues, Pairs};
pub(crate) use stream::{KeyStream, KeyStreams, MOST_CHANNELS};

/// f32 lanes of a vector.
pub(crate) fn lanes(isa: Isa) -> usize {
    dispatch!(isa, simd => width(simd))
}

#[inline(always)]
fn width<S: Simd>(_: S) -> usize {
    S::f32s::LEN
}

/// Whether none of the numbers is infinite or NaN.
pub(crate) fn all_finite(isa: Isa, numbers: &[f32]) -> bool {
    dispatch!(isa, _simd => ElementType::F32.holds(numbers))
}

/// Whether an instruction set has registers for large tiles. Not so the scalar one: unrolled for it, they are of no use and
/// take minutes to compile.
#[inline(always)]
const fn large_tiles<S: Simd>() -> bool {
    cfg!(target_arch = "aarch64") || S::f32s::LEN > 4
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between -1 and 1 that look random.
    pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn tested_scores_are_the_scores_that_pass() {
        let (head_dim, lanes) = (20, 96);
        let (keys, queries) = (numbers(64 * head_dim, 1), numbers(head_dim * lanes, 2));
        for isa in Isa::available() {
            for count in [0, 1, 3, 23, 24, 25, 48, 61] {
                let picks: Vec<usize> = (0..count).map(|i| i + i / 30).collect();
                let mut all = vec![0.0; count * lanes];
                matmul::scores(isa, &keys, &picks, &queries, lanes, &mut all);
                // None passes, some do, all do.
                for limit in [1e30, 4.0, -1e30] {
                    let thresholds = vec![limit; lanes];
                    let (mut some, mut kept) = (vec![0.0; count * lanes], Vec::new());
                    matmul::scores_above(
                        isa,
                        &keys,
                        &picks,
                        &queries,
                        lanes,
                        &thresholds,
                        &mut some,
                        &mut kept,
                    );
                    let pass = |row: &usize| all[row * lanes..][..lanes].iter().any(|score| *score > limit);
                    let expected: Vec<usize> = (0..count).filter(pass).collect();
                    assert_eq!(kept, expected, "{isa}, {count} keys, {limit}");
                    for (i, row) in kept.iter().enumerate() {
                        assert_eq!(
                            some[i * lanes..][..lanes],
                            all[row * lanes..][..lanes],
                            "{isa}, {count} keys"
                        );
                    }
                    assert!(count < 61 || limit != 4.0 || (1..count).contains(&kept.len()), "{}", kept.len());
                    assert!(limit == 4.0 || kept.len() == if limit > 0.0 { 0 } else { count });
                }
            }
        }
    }
}
