//! Tokens as 8-bit numbers, with a scale for every block of columns.

use deltallm_simd::{
    dispatch,
    dot::ByteKernel,
    math::ROUND,
    tuning::{LEAST_WORK, QUANTISED_BATCH as BATCH},
};
use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::layout::Form;
use crate::linear::kernels::Quad;

/// Quantised tokens.
#[derive(Debug, Default)]
pub(crate) struct BlockActivations {
    /// The kernel and the form that the tokens were rounded for, if there are tokens.
    made_for: Option<(ByteKernel, Form)>,
    /// Blocks of a token.
    blocks: usize,
    /// Quads of a block.
    quads: usize,
    /// Batch after batch, `[blocks, tokens of the batch, quads]`; the last batch may have fewer tokens.
    codes: Vec<Quad>,
    /// Batch after batch, `[blocks, tokens of the batch]`.
    scales: Vec<BlockScale>,
}

/// What the sums of products of a block of a token are multiplied with, and what is added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct BlockScale {
    /// The numbers are the codes times this.
    pub(super) scale: f32,
    /// The sum of the codes, times `scale`.
    pub(super) sum: f32,
    /// What sums of products begin with, so that the offset of the weights' codes is taken away.
    pub(super) start: i32,
}

/// The tokens of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) tokens: usize,
    /// `[blocks, tokens, quads]`.
    pub(super) codes: &'a [Quad],
    /// `[blocks, tokens]`.
    pub(super) scales: &'a [BlockScale],
}

/// Blocks of smaller numbers are scaled as if this were their largest: the reciprocal of a smaller one may be infinite.
pub(super) const LEAST: f32 = 1e-30;

impl BlockActivations {
    /// Forgets the tokens.
    pub(crate) fn clear(&mut self) {
        self.made_for = None;
    }

    /// Rounds the tokens of `x`, `[tokens, columns]`, for weights of that form. Does nothing if it has done so since they were
    /// [cleared](Self::clear).
    pub(super) fn round(&mut self, kernel: ByteKernel, x: &ArrayView2<f32>, form: Form) {
        let made_for = Some((kernel, form));
        if self.made_for == made_for {
            return;
        }
        let (blocks, quads) = (x.ncols() / form.block(), form.block() / 4);
        let x = x.as_standard_layout();
        (self.made_for, self.blocks, self.quads) = (made_for, blocks, quads);
        self.codes.resize(x.len() / 4, Quad::default());
        self.scales.resize(x.nrows() * blocks, BlockScale::default());
        let sizes = (BATCH * blocks * quads, BATCH * blocks);
        let batches = x.axis_chunks_iter(Axis(0), BATCH);
        let quantise = |((codes, scales), x): ((&mut [Quad], &mut [BlockScale]), ArrayView2<f32>)| {
            let Some(x) = x.to_slice() else { unreachable!("rows of an array in standard layout") };
            quantise_batch(kernel, form, x, blocks, codes, scales);
        };
        if rayon::current_num_threads() == 1 || x.len() < LEAST_WORK {
            let parts = self.codes.chunks_mut(sizes.0).zip(self.scales.chunks_mut(sizes.1));
            parts.zip(batches).for_each(quantise);
        } else {
            let parts = self.codes.par_chunks_mut(sizes.0).zip(self.scales.par_chunks_mut(sizes.1));
            parts.zip(batches.into_par_iter()).for_each(quantise);
        }
    }

    /// All batches, in order.
    pub(super) fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        let size = BATCH * self.blocks;
        let parts = self.codes.chunks(size * self.quads).zip(self.scales.chunks(size));
        parts.map(|(codes, scales)| Batch { tokens: scales.len() / self.blocks, codes, scales })
    }
}

/// Rounds the tokens of a batch to 8 bits, block by block; see [`quantise_blocks`].
fn quantise_batch(
    kernel: ByteKernel,
    form: Form,
    x: &[f32],
    blocks: usize,
    codes: &mut [Quad],
    scales: &mut [BlockScale],
) {
    let offset = i32::from(form.offset()) - shift(kernel, form);
    dispatch!(kernel.isa(), _simd => match form.block() {
        16 => quantise_blocks::<16>(offset, x, blocks, codes, scales),
        _ => quantise_blocks::<32>(offset, x, blocks, codes, scales),
    });
}

/// What the kernel itself takes from codes, to multiply signed bytes.
fn shift(kernel: ByteKernel, form: Form) -> i32 {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn is_signed<K: crate::linear::kernels::ByteProducts>(_: K) -> bool {
        K::SIGNED
    }
    let signed = match kernel {
        ByteKernel::Scalar => false,
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx2(avx2) => is_signed(avx2),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::AvxVnni(avx_vnni) => is_signed(avx_vnni),
        #[cfg(target_arch = "x86_64")]
        ByteKernel::Avx512(avx512) => is_signed(avx512),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::Neon(neon) => is_signed(neon),
        #[cfg(target_arch = "aarch64")]
        ByteKernel::DotProd(dot_prod) => is_signed(dot_prod),
    };
    if signed && form.bits() == 8 { 128 } else { 0 }
}

/// Quantises the tokens of a batch, each of `blocks` blocks of `BLOCK` numbers. `offset` is what is taken from the weights'
/// codes. Every instruction set compiles this for its vectors; as there is no sum of floats in it, they agree to the bit.
#[inline(always)]
fn quantise_blocks<const BLOCK: usize>(
    offset: i32,
    x: &[f32],
    blocks: usize,
    codes: &mut [Quad],
    scales: &mut [BlockScale],
) {
    let (codes, tokens) = (codes.as_flattened_mut().as_chunks_mut::<BLOCK>().0, scales.len() / blocks);
    for (token, x) in x.chunks_exact(blocks * BLOCK).enumerate() {
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            let place = block * tokens + token;
            scales[place] = quantise(offset, x, &mut codes[place]);
        }
    }
}

/// `scale = max |x| / 127`, `q = round(x / scale)`, half to even.
///
/// A block with a number that is NaN or infinite gets the scale NaN, which makes NaN of all outputs of the token.
#[inline(always)]
fn quantise<const BLOCK: usize>(offset: i32, x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> BlockScale {
    // Bit patterns of magnitudes are in the order of the magnitudes, and infinity and NaN come last.
    let largest = f32::from_bits(x.iter().fold(0, |max, x| x.abs().to_bits().max(max)));
    if !largest.is_finite() {
        codes.fill(0);
        return BlockScale { scale: f32::NAN, sum: f32::NAN, start: 0 };
    }
    let largest = largest.max(LEAST);
    let inverse = 127.0 / largest;
    let mut sum = 0;
    for (x, code) in x.iter().zip(codes) {
        *code = (x * inverse + ROUND).to_bits() as i8;
        sum += i32::from(*code);
    }
    let scale = largest / 127.0;
    BlockScale { scale, sum: scale * sum as f32, start: -offset * sum }
}

#[cfg(test)]
mod tests {
    use deltallm_testing::Random;

    use super::*;

    #[test]
    fn halves_are_rounded_to_even_and_every_block_has_its_scale() {
        let mut x = [0.0; 32];
        x[..8].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 0.0]);
        x[16] = -254.0;
        for kernel in ByteKernel::available() {
            let mut codes = [[7; 4]; 8];
            let mut scales = [BlockScale::default(); 2];
            quantise_batch(kernel, Form::Six, &x, 2, &mut codes, &mut scales);
            assert_eq!(codes[..2], [[127, 0, 2, 2], [0, -2, -126, 0]], "{kernel}");
            assert_eq!(codes[4..], [[-127, 0, 0, 0], [0; 4], [0; 4], [0; 4]], "{kernel}");
            assert_eq!(scales[0], BlockScale { scale: 1.0, sum: 3.0, start: -96 }, "{kernel}");
            assert_eq!(scales[1], BlockScale { scale: 2.0, sum: -254.0, start: 4064 }, "{kernel}");
        }
    }

    #[test]
    fn no_finite_number_leaves_the_range_or_is_off_by_more_than_half_a_step() {
        let mut random = Random::scattered(1);
        for _ in 0..1000 {
            let largest = f32::from_bits((random.bits() >> 33) as u32);
            if !largest.is_finite() {
                continue;
            }
            let x: [f32; 16] = std::array::from_fn(|i| largest * (1.0 - i as f32 / 7.5));
            for kernel in ByteKernel::available() {
                let (mut codes, mut scales) = ([Quad::default(); 4], [BlockScale::default()]);
                quantise_batch(kernel, Form::Six, &x, 1, &mut codes, &mut scales);
                for (x, code) in x.iter().zip(codes.as_flattened()) {
                    let (step, x) = (f64::from(scales[0].scale), f64::from(*x));
                    assert!((-127..=127).contains(code), "{largest:e} {kernel}");
                    let off = (x - step * f64::from(*code)).abs();
                    assert!(off <= 0.50001 * step, "{largest:e} {kernel}: {off} {step}");
                }
            }
        }
    }
}
