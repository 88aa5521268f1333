//! The gate of a feed-forward layer, on vectors.

use std::f32::consts::{FRAC_2_PI, LOG2_E};

use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*, math::exp2};

/// `gate[i] = silu(gate[i]) * up[i]`, with `silu(x) = x / (1 + e^-x)`.
pub(crate) fn silu_product(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "lengths of gate and up");
    dispatch!(isa, simd => product(simd, gate, up, #[inline(always)] |x| silu(simd, x)));
}

/// `gate[i] = gelu(gate[i]) * up[i]`, with `gelu(x) = x / (1 + e^-2u)` and `u = sqrt(2 / pi) (x + 0.044715 x^3)`: the tanh form.
pub(crate) fn gelu_product(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "lengths of gate and up");
    dispatch!(isa, simd => product(simd, gate, up, #[inline(always)] |x| gelu(simd, x)));
}

#[inline(always)]
fn product<S: Simd>(simd: S, gate: &mut [f32], up: &[f32], function: impl Fn(S::f32s) -> S::f32s) {
    let width = S::f32s::LEN;
    let (mut gates, mut ups) = (gate.chunks_exact_mut(width), up.chunks_exact(width));
    for (gate, up) in (&mut gates).zip(&mut ups) {
        (function(S::f32s::from_slice(simd, gate)) * S::f32s::from_slice(simd, up)).store_slice(gate);
    }
    for (gate, up) in gates.into_remainder().iter_mut().zip(ups.remainder()) {
        *gate = function(S::f32s::splat(simd, *gate)).as_slice()[0] * up;
    }
}

#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    times_sigmoid(simd, x, x * -LOG2_E)
}

#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let factor = -2.0 * LOG2_E * FRAC_2_PI.sqrt();
    times_sigmoid(simd, x, x * (x * x * 0.044_715 + 1.0) * factor)
}

/// `x / (1 + 2^power)`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::f32s, power: S::f32s) -> S::f32s {
    // Beyond, the result is smaller than any number that matters, and the power must not overflow. NaN stays NaN.
    let power = power.simd_gt(126.0).select(S::f32s::splat(simd, 126.0), power);
    x / (exp2(simd, power) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function, the power of e in it, which is then `x / (1 + e^power)`, and how far the power is off, as a share.
    type Gate = (fn(Isa, &mut [f32], &[f32]), fn(f64) -> f64, f64);

    const GATES: [Gate; 2] = [
        (silu_product, |x| -x, 1e-7),
        (gelu_product, |x| -2.0 * std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x * x * x), 4e-7),
    ];

    #[test]
    fn gates_agree_with_f64_for_every_instruction_set_and_length() {
        for isa in Isa::available() {
            for (len, (product, power, rounding)) in
                [1, 7, 16, 33, 1000].into_iter().flat_map(|len| GATES.map(|gate| (len, gate)))
            {
                let x: Vec<f32> = (0..len).map(|i| (i as f32 - len as f32 / 2.0) * 0.173).collect();
                let up: Vec<f32> = (0..len).map(|i| 1.0 - i as f32 * 0.01).collect();
                let mut gate = x.clone();
                product(isa, &mut gate, &up);
                for ((got, x), up) in gate.iter().zip(&x).zip(&up) {
                    let x = f64::from(*x);
                    let power = power(x);
                    let expected = x / (1.0 + power.exp()) * f64::from(*up);
                    // The power, rounded, is off by a share that grows with it.
                    let off = (f64::from(*got) - expected).abs();
                    let bound = (1e-6 + rounding * power.abs()) * expected.abs() + 1e-30;
                    assert!(off <= bound, "{isa}, {x}: {got}, {expected}");
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_range_are_zero_infinite_or_nan() {
        for (isa, (product, ..)) in Isa::available().into_iter().flat_map(|isa| GATES.map(|gate| (isa, gate)))
        {
            let mut gate = [-1e30, -1000.0, -0.0, 1000.0, f32::INFINITY, f32::NAN];
            product(isa, &mut gate, &[1.0; 6]);
            assert!(gate[..3].iter().all(|x| x.abs() < 1e-6), "{isa}: {gate:?}");
            assert_eq!((gate[3], gate[4]), (1000.0, f32::INFINITY), "{isa}");
            assert!(gate[5].is_nan(), "{isa}");
        }
    }
}
