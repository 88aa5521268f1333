//! Sums over a row of logits. A vocabulary has up to 262144 entries, so that the exponentials of `f64`, one by one, would be a third
//! of an evaluation: these are of `f32`, whole vectors at a time, and summed in `f64`.

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::exp2};

/// Logits whose exponentials are summed in `f32`: few enough that the rounding stays below that of the exponentials.
const BLOCK: usize = 1024;

/// The index of the largest logit (the first of several), and the logit; NaN does not count, and `(0, -inf)` is the answer where nothing does.
pub(super) fn largest(isa: Isa, row: &[f32]) -> (usize, f32) {
    let max = dispatch!(isa, simd => maximum(simd, row));
    (row.iter().position(|x| *x == max).unwrap_or(0), max)
}

/// The logarithm of the sum of the exponentials of a row whose largest number is `max`.
pub(super) fn log_sum_exp(isa: Isa, row: &[f32], max: f32) -> f64 {
    f64::from(max) + dispatch!(isa, simd => exponentials(simd, row, max)).ln()
}

/// KL(p || q) in nats, where `p` and `q` are the softmax of two rows and the sums are those of [`log_sum_exp`].
pub(super) fn divergence(isa: Isa, (p, p_sum): (&[f32], f64), (q, q_sum): (&[f32], f64)) -> f64 {
    dispatch!(isa, simd => weighted_differences(simd, (p, p_sum), (q, q_sum)))
}

/// A vector of `row`, filled up with `rest` where the row ends.
#[inline(always)]
fn load<S: Simd>(simd: S, part: &[f32], rest: f32) -> S::f32s {
    if part.len() == S::f32s::LEN {
        return S::f32s::from_slice(simd, part);
    }
    let mut vector = S::f32s::splat(simd, rest);
    vector.as_mut_slice()[..part.len()].copy_from_slice(part);
    vector
}

#[inline(always)]
fn maximum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut max = S::f32s::splat(simd, f32::NEG_INFINITY);
    for part in row.chunks(S::f32s::LEN) {
        let x = load(simd, part, f32::NEG_INFINITY);
        // A comparison and not `max`, whose answer for NaN depends on the instruction set.
        max = x.simd_gt(max).select(x, max);
    }
    max.as_slice().iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &[f32], max: f32) -> f64 {
    let (max, log2_e) = (S::f32s::splat(simd, max), S::f32s::splat(simd, std::f32::consts::LOG2_E));
    let mut total = 0.0;
    for block in row.chunks(BLOCK) {
        let mut sum = S::f32s::splat(simd, 0.0);
        for part in block.chunks(S::f32s::LEN) {
            sum += exp2(simd, (load(simd, part, f32::NEG_INFINITY) - max) * log2_e);
        }
        total += in_f64(sum.as_slice());
    }
    total
}

/// `sum p (ln p - ln q)`, divided by `sum p`: what the rounding of `p_sum` and of the exponentials have in common goes out.
#[inline(always)]
fn weighted_differences<S: Simd>(simd: S, (p, p_sum): (&[f32], f64), (q, q_sum): (&[f32], f64)) -> f64 {
    let (zero, log2_e) = (S::f32s::splat(simd, 0.0), S::f32s::splat(simd, std::f32::consts::LOG2_E));
    let shift = (p_sum - q_sum) as f32;
    let (p_sum_f32, shift_f32) = (S::f32s::splat(simd, p_sum as f32), S::f32s::splat(simd, shift));
    let (mut weights, mut differences) = (0.0, 0.0);
    for (p, q) in p.chunks(BLOCK).zip(q.chunks(BLOCK)) {
        let (mut weight_sum, mut difference_sum) = (zero, zero);
        for (p, q) in p.chunks(S::f32s::LEN).zip(q.chunks(S::f32s::LEN)) {
            let (p, q) = (load(simd, p, f32::NEG_INFINITY), load(simd, q, 0.0));
            let weight = exp2(simd, (p - p_sum_f32) * log2_e);
            weight_sum += weight;
            // The limit of p ln p at 0, where the logarithm itself is infinite.
            difference_sum += weight.simd_eq(zero).select(zero, weight * (p - q - shift_f32));
        }
        weights += in_f64(weight_sum.as_slice());
        differences += in_f64(difference_sum.as_slice());
    }
    let divergence = differences / weights - (p_sum - q_sum - f64::from(shift));
    // Not `max`, which would make 0 of NaN. What is below comes of rounding.
    if divergence < 0.0 { 0.0 } else { divergence }
}

fn in_f64(numbers: &[f32]) -> f64 {
    numbers.iter().map(|x| f64::from(*x)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deltallm_testing::numbers;

    /// Lengths around the ends of vectors and blocks.
    const LENGTHS: [usize; 10] = [1, 2, 7, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 5003];

    /// The sum and the divergence as the formulas say, in f64.
    fn by_hand(p: &[f32], q: &[f32]) -> (f64, f64) {
        let log_sum = |row: &[f32]| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            f64::from(max) + row.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln()
        };
        let (p_sum, q_sum) = (log_sum(p), log_sum(q));
        let terms = p.iter().zip(q).map(|(p, q)| {
            let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
            p.exp() * (p - q)
        });
        (p_sum, terms.sum())
    }

    #[test]
    fn agrees_with_f64_for_every_instruction_set() {
        for isa in Isa::available() {
            for (seed, length) in (0..).zip(LENGTHS) {
                let p: Vec<f32> = numbers(length, seed).iter().map(|x| 20.0 * x - 7.0).collect();
                let q: Vec<f32> =
                    p.iter().zip(numbers(length, seed + 50)).map(|(p, x)| p + 0.3 * x + 2.0).collect();
                let [p_sum, q_sum] = [&p, &q].map(|row| log_sum_exp(isa, row, largest(isa, row).1));
                let (sum, kl) = by_hand(&p, &q);
                assert!((p_sum - sum).abs() < 2e-6, "{isa}, {length}: {p_sum}, expected {sum}");
                let got = divergence(isa, (&p, p_sum), (&q, q_sum));
                assert!((got - kl).abs() < 1e-6, "{isa}, {length}: {got}, expected {kl}");
            }
        }
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        for isa in Isa::available() {
            for length in LENGTHS {
                let mut row = vec![-3.0; length];
                row[length / 2] = 4.0;
                row[length - 1] = 4.0;
                assert_eq!(largest(isa, &row), (length / 2, 4.0), "{isa}, {length}");
            }
        }
    }

    #[test]
    fn nan_and_infinite_logits() {
        for isa in Isa::available() {
            let p = [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
            let q = [0.0, f32::NEG_INFINITY, 0.0];
            assert_eq!(largest(isa, &p), (0, 0.0), "{isa}");
            assert!(log_sum_exp(isa, &p, 0.0).abs() < 3e-7, "{isa}");
            let kl = divergence(isa, (&p, 0.0), (&q, 2_f64.ln()));
            assert!((kl - 2_f64.ln()).abs() < 1e-7, "{isa}: {kl}");
            assert_eq!(divergence(isa, (&q, 2_f64.ln()), (&p, 0.0)), f64::INFINITY, "{isa}");
            assert_eq!(largest(isa, &[f32::NAN, 1.0, f32::NAN]), (1, 1.0), "{isa}");
            assert!(log_sum_exp(isa, &[f32::NAN, 1.0], 1.0).is_nan(), "{isa}");
            assert!(divergence(isa, (&[f32::NAN, 1.0], 1.0), (&[0.0, 1.0], 1.3)).is_nan(), "{isa}");
            assert_eq!(largest(isa, &[]), (0, f32::NEG_INFINITY), "{isa}");
        }
    }
}
