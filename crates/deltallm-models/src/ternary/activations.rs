//! Tokens as 8-bit numbers, one scale for each.

use ndarray::ArrayView2;

/// Quantised tokens.
#[derive(Debug)]
pub(super) struct Activations {
    /// Columns, padded.
    stride: usize,
    /// `[tokens, stride]`.
    codes: Vec<i8>,
    /// `[tokens]`.
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    /// The codes are the numbers times this.
    scale: f32,
    /// The sum of the codes.
    sum: i32,
}

/// 1.5 * 2^23: added to a number below 2^22 in magnitude it leaves the nearest integer, half to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Activations {
    /// Rounds the tokens of `x`, `[tokens, columns]`; a row of codes has `stride` elements, the last of which are zero.
    pub(super) fn new(x: &ArrayView2<f32>, stride: usize) -> Self {
        let mut codes = vec![0; x.nrows() * stride];
        let tokens =
            x.outer_iter().zip(codes.chunks_exact_mut(stride)).map(|(x, codes)| match x.as_slice() {
                Some(x) => quantise(x, codes),
                None => quantise(&x.to_vec(), codes),
            });
        let tokens = tokens.collect();
        Self { stride, codes, tokens }
    }

    /// The codes of a token.
    pub(super) fn codes(&self, token: usize) -> &[i8] {
        &self.codes[token * self.stride..][..self.stride]
    }

    /// The sum of a token's codes: what codes of weights, which are weights plus one, add too much.
    pub(super) fn sum(&self, token: usize) -> i32 {
        self.tokens[token].sum
    }

    /// What a sum of products is multiplied with.
    pub(super) fn factor(&self, token: usize, scale: f32) -> f32 {
        scale / self.tokens[token].scale
    }
}

/// `s = 127 / max(max |x|, 1e-5)`, `q = round(x s)`, half to even.
///
/// `transformers` also clamps `q` to -128..=127. `x s` exceeds 127 by a few roundings at most, so that never acts.
fn quantise(x: &[f32], codes: &mut [i8]) -> Token {
    // Bit patterns of magnitudes are in the order of the magnitudes, and infinity and NaN come last.
    let max = x.iter().fold(0, |max, x| x.abs().to_bits().max(max));
    let max = f32::from_bits(max);
    if !max.is_finite() {
        return Token { scale: f32::NAN, sum: 0 };
    }
    let scale = 127.0 / max.max(1e-5);
    let mut sum = 0;
    for (x, code) in x.iter().zip(codes) {
        *code = (x * scale + ROUND).to_bits() as i8;
        sum += i32::from(*code);
    }
    Token { scale, sum }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn halves_are_rounded_to_even_and_the_largest_becomes_127() {
        let x = array![[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 0.0]];
        let activations = Activations::new(&x.view(), 16);
        assert_eq!(activations.codes(0)[..8], [127, 0, 2, 2, 0, -2, -126, 0]);
        assert_eq!(activations.codes(0)[8..], [0; 8]);
        assert_eq!((activations.sum(0), activations.factor(0, 2.0)), (3, 2.0));
    }

    #[test]
    fn small_tokens_are_scaled_as_if_their_largest_were_1e_5() {
        let activations = Activations::new(&array![[1e-6, -1e-7], [0.0, -0.0]].view(), 16);
        assert_eq!(activations.codes(0)[..2], [13, -1]);
        assert_eq!(activations.factor(1, 1.0), 1.0 / (127.0 / 1e-5));
    }
}
