//! Tokens as 8-bit numbers, one scale for each.

use deltallm_simd::{dispatch, dot::ByteKernel, math::ROUND, tuning::LEAST_WORK};
use ndarray::{ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use crate::linear::kernels::Quad;

/// Quantised tokens.
#[derive(Debug, Default)]
pub(crate) struct TokenActivations {
    /// The kernel, the quads and the tokens of a block that the tokens were rounded for, if there are tokens.
    made_for: Option<(ByteKernel, usize, usize)>,
    /// Quads of a token.
    quads: usize,
    /// Tokens of a block.
    block: usize,
    /// Block after block, `[quads, tokens of the block]`; the last block may have fewer tokens.
    codes: Vec<Quad>,
    /// `[tokens]`.
    scales: Vec<TokenScale>,
}

/// What turns sums of a token's codes back into numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TokenScale {
    /// The codes are the numbers times this.
    pub(super) scale: f32,
    /// The sum of the codes.
    pub(super) sum: i32,
}

impl TokenActivations {
    /// Forgets the tokens.
    pub(crate) fn clear(&mut self) {
        self.made_for = None;
    }

    /// Rounds the tokens of `x`, `[tokens, columns]`, to `quads` quads each, the last of which are padded with zeros. Does
    /// nothing if it has done so since they were [cleared](Self::clear).
    pub(super) fn round(&mut self, kernel: ByteKernel, x: &ArrayView2<f32>, quads: usize, block: usize) {
        let made_for = Some((kernel, quads, block));
        if self.made_for == made_for {
            return;
        }
        (self.made_for, self.quads, self.block) = (made_for, quads, block);
        self.codes.clear();
        self.codes.resize(x.nrows() * quads, Quad::default());
        self.scales.resize(x.nrows(), TokenScale::default());
        let (codes, scales) = (&mut self.codes, &mut self.scales);
        let blocks = codes.chunks_mut(quads * block).zip(scales.chunks_mut(block));
        let tokens = x.axis_chunks_iter(Axis(0), block);
        if rayon::current_num_threads() == 1 || x.len() < LEAST_WORK {
            blocks.zip(tokens).for_each(|((codes, scales), x)| quantise_block(kernel, &x, codes, scales));
        } else {
            let blocks = codes.par_chunks_mut(quads * block).zip(scales.par_chunks_mut(block));
            let blocks = blocks.zip(tokens.into_par_iter());
            blocks.for_each(|((codes, scales), x)| quantise_block(kernel, &x, codes, scales));
        }
    }

    /// The codes of a block, `[quads, tokens of the block]`.
    pub(super) fn block(&self, block: usize) -> &[Quad] {
        let size = self.quads * self.block;
        &self.codes[block * size..self.codes.len().min((block + 1) * size)]
    }

    /// The scale of a token.
    pub(super) fn scale(&self, token: usize) -> TokenScale {
        self.scales[token]
    }
}

/// Quantises the tokens of a block and lays their quads side by side.
fn quantise_block(kernel: ByteKernel, x: &ArrayView2<f32>, codes: &mut [Quad], scales: &mut [TokenScale]) {
    if let [scale] = scales {
        *scale = quantise_token(kernel, x.row(0), codes);
        return;
    }
    let tokens = scales.len();
    let mut row = vec![Quad::default(); codes.len() / tokens];
    for (token, (x, scale)) in x.outer_iter().zip(scales).enumerate() {
        *scale = quantise_token(kernel, x, &mut row);
        for (codes, quad) in codes.chunks_exact_mut(tokens).zip(&row) {
            codes[token] = *quad;
        }
    }
}

fn quantise_token(kernel: ByteKernel, x: ArrayView1<f32>, codes: &mut [Quad]) -> TokenScale {
    match x.as_slice() {
        Some(x) => quantise(kernel, x, codes.as_flattened_mut()),
        None => quantise(kernel, &x.to_vec(), codes.as_flattened_mut()),
    }
}

/// Rounds a token to 8 bits; see [`quantise_vectors`].
fn quantise(kernel: ByteKernel, x: &[f32], codes: &mut [i8]) -> TokenScale {
    dispatch!(kernel.isa(), _simd => quantise_vectors(x, codes))
}

/// `s = 127 / max(max |x|, 1e-5)`, `q = round(x s)`, half to even. Every instruction set compiles this for its vectors; as there is
/// no sum of floats in it, they agree to the bit.
///
/// `transformers` also clamps `q` to -128..=127. `x s` exceeds 127 by a few roundings at most, so that never acts.
#[inline(always)]
fn quantise_vectors(x: &[f32], codes: &mut [i8]) -> TokenScale {
    // Bit patterns of magnitudes are in the order of the magnitudes, and infinity and NaN come last.
    let max = f32::from_bits(x.iter().fold(0, |max, x| x.abs().to_bits().max(max)));
    if !max.is_finite() {
        codes.fill(0);
        return TokenScale { scale: f32::NAN, sum: 0 };
    }
    let scale = 127.0 / max.max(1e-5);
    let mut sum = 0;
    for (x, code) in x.iter().zip(codes) {
        *code = (x * scale + ROUND).to_bits() as i8;
        sum += i32::from(*code);
    }
    TokenScale { scale, sum }
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;

    use super::*;

    #[test]
    fn halves_are_rounded_to_even_and_the_largest_becomes_127() {
        let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 0.0];
        for kernel in ByteKernel::available() {
            let mut codes = [7; 8];
            let token = quantise(kernel, &x, &mut codes);
            assert_eq!(codes, [127, 0, 2, 2, 0, -2, -126, 0], "{kernel}");
            assert_eq!((token.sum, token.scale), (3, 1.0), "{kernel}");
        }
    }

    #[test]
    fn small_tokens_are_scaled_as_if_their_largest_were_1e_5() {
        for kernel in ByteKernel::available() {
            let mut codes = [7; 2];
            assert_eq!(quantise(kernel, &[1e-6, -1e-7], &mut codes).scale, 127.0 / 1e-5);
            assert_eq!(codes, [13, -1]);
            assert_eq!(quantise(kernel, &[0.0, -0.0], &mut codes).scale, 127.0 / 1e-5);
            assert_eq!(codes, [0, 0]);
        }
    }

    #[test]
    fn no_number_leaves_the_range() {
        let mut random = Random::scattered(1);
        for _ in 0..1000 {
            let largest = f32::from_bits((random.bits() >> 33) as u32);
            if largest.is_finite() {
                let mut codes = [0; 3];
                let scale = 127.0 / largest.max(1e-5);
                for kernel in ByteKernel::available() {
                    quantise(kernel, &[largest, -largest, largest / 2.0], &mut codes);
                    let expected = [largest, -largest, largest / 2.0]
                        .map(|x| (x * scale).round_ties_even().clamp(-128.0, 127.0) as i8);
                    assert_eq!(codes, expected, "{largest:e} {kernel}");
                }
            }
        }
    }
}
