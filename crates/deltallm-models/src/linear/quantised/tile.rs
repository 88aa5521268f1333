//! The loops that all instruction sets share. The codes of a block are unpacked once for all tokens of the batch, then multiplied
//! with a few tokens at a time, so that sums of products stay in registers; the sums of blocks are in the first cache.
#![allow(clippy::needless_range_loop, reason = "loops of constant count over arrays of registers")]

use deltallm_simd::{
    fearless_simd::{f32x16, prelude::*, u8x64},
    weight_order::WeightOrder,
};

use super::{
    activations::{Batch, BlockScale},
    layout::{Form, Panel},
};
use crate::linear::kernels::{ByteProducts, PANEL, Quad, bytes_of};

/// [`scalar::multiply`](super::scalar::multiply) with `P` panels side by side and `N` tokens at a time: as many as registers hold
/// the sums of. The sizes have been checked.
#[inline(always)]
pub(super) fn multiply_panels<K: ByteProducts, const P: usize, const N: usize>(
    kernel: K,
    order: WeightOrder,
    form: Form,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[f32; PANEL]],
) {
    let sums = sums.as_chunks_mut().0;
    match form {
        Form::Four => blocks::<K, P, N, 8, 4, false>(kernel, order, panels, batch, sums),
        Form::FourMinima => blocks::<K, P, N, 8, 4, true>(kernel, order, panels, batch, sums),
        Form::Five => blocks::<K, P, N, 8, 5, false>(kernel, order, panels, batch, sums),
        Form::FiveMinima => blocks::<K, P, N, 8, 5, true>(kernel, order, panels, batch, sums),
        Form::Six => blocks::<K, P, N, 4, 6, false>(kernel, order, panels, batch, sums),
        Form::Eight => blocks::<K, P, N, 8, 8, false>(kernel, order, panels, batch, sums),
    }
}

/// A block of `P` panels.
struct Block<K: ByteProducts, const P: usize, const QUADS: usize> {
    codes: [[K::Codes; QUADS]; P],
    scales: [f32x16<K::Simd>; P],
    /// Without meaning where there are none.
    minima: [f32x16<K::Simd>; P],
}

/// All blocks, one after the other.
#[inline(always)]
fn blocks<
    K: ByteProducts,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const BITS: u32,
    const MINIMA: bool,
>(
    kernel: K,
    order: WeightOrder,
    panels: &[Panel<'_>; P],
    batch: Batch<'_>,
    sums: &mut [[[f32; PANEL]; P]],
) {
    let quads = batch.codes.as_chunks::<QUADS>().0.chunks_exact(batch.tokens);
    for (index, (quads, scales)) in quads.zip(batch.scales.chunks_exact(batch.tokens)).enumerate() {
        let block = unpack::<K, P, QUADS, BITS, MINIMA>(kernel, order, panels, index);
        let (quads, rest_quads) = quads.as_chunks::<N>();
        let (scales, rest_scales) = scales.as_chunks::<N>();
        let (sums, rest_sums) = sums.as_chunks_mut::<N>();
        for ((quads, scales), sums) in quads.iter().zip(scales).zip(sums) {
            tokens::<K, P, N, QUADS, BITS, MINIMA>(kernel, &block, quads, scales, sums);
        }
        for ((quads, scales), sums) in rest_quads.iter().zip(rest_scales).zip(rest_sums) {
            let sums = std::array::from_mut(sums);
            tokens::<K, P, 1, QUADS, BITS, MINIMA>(kernel, &block, &[*quads], &[*scales], sums);
        }
    }
}

/// Block `index` of the panels.
#[inline(always)]
fn unpack<K: ByteProducts, const P: usize, const QUADS: usize, const BITS: u32, const MINIMA: bool>(
    kernel: K,
    order: WeightOrder,
    panels: &[Panel<'_>; P],
    index: usize,
) -> Block<K, P, QUADS> {
    let simd = kernel.simd();
    let (nothing, zero) = (kernel.codes::<BITS>(u8x64::splat(simd, 0)), f32x16::splat(simd, 0.0));
    let mut block = Block { codes: [[nothing; QUADS]; P], scales: [zero; P], minima: [zero; P] };
    for p in 0..P {
        if BITS == 8 {
            let lines = &panels[p].lines[index * QUADS..][..QUADS];
            for quad in 0..QUADS {
                order.prefetch_after(&lines[quad]);
                block.codes[p][quad] = kernel.codes::<BITS>(bytes_of(simd, &lines[quad]));
            }
        } else {
            let count = QUADS / 2 + usize::from(BITS > 4);
            let lines = &panels[p].lines[index * count..][..count];
            let above = bytes_of(simd, &lines[count - 1]);
            if BITS > 4 {
                order.prefetch_after(&lines[count - 1]);
            }
            for i in 0..QUADS / 2 {
                order.prefetch_after(&lines[i]);
                let bytes = bytes_of(simd, &lines[i]);
                let [mut low, mut high] = [bytes & 0xf, bytes >> 4];
                if BITS > 4 {
                    low |= bits_above::<K, BITS>(above, 2 * i);
                    high |= bits_above::<K, BITS>(above, 2 * i + 1);
                }
                block.codes[p][2 * i] = kernel.codes::<BITS>(low);
                block.codes[p][2 * i + 1] = kernel.codes::<BITS>(high);
            }
        }
        let count = 1 + usize::from(MINIMA);
        let factors = &panels[p].factors[index * count..][..count];
        order.prefetch_after(&factors[0]);
        block.scales[p] = kernel.widen(&factors[0]);
        if MINIMA {
            block.minima[p] = kernel.widen(&factors[1]);
        }
    }
    block
}

/// What a quad's codes of 5 or 6 bits have above the lower four, in its place.
#[inline(always)]
fn bits_above<K: ByteProducts, const BITS: u32>(above: u8x64<K::Simd>, quad: usize) -> u8x64<K::Simd> {
    let bits = BITS - 4;
    let (from, mask) = (bits * quad as u32, ((1 << bits) - 1) << 4);
    if from <= 4 { (above << (4 - from)) & mask } else { (above >> (from - 4)) & mask }
}

/// A block times `N` tokens. Every loop has a constant count.
#[inline(always)]
fn tokens<
    K: ByteProducts,
    const P: usize,
    const N: usize,
    const QUADS: usize,
    const BITS: u32,
    const MINIMA: bool,
>(
    kernel: K,
    block: &Block<K, P, QUADS>,
    quads: &[[Quad; QUADS]; N],
    scales: &[BlockScale; N],
    sums: &mut [[[f32; PANEL]; P]; N],
) {
    // With AVX2 alone codes of more than 4 bits need a register of ones. Compilers would rather keep the factors of the block in one, which are needed
    // once, and read the ones again for every product (a tenth of the time; Xeon, 28 November 2026): so the block stays in memory.
    let needs_ones = const { cfg!(target_arch = "x86_64") && K::SIGNED && BITS > 4 && QUADS == 8 };
    let block = if needs_ones { std::hint::black_box(block) } else { block };
    let mut products = [[kernel.begin(0); P]; N];
    // With minima there is no offset to take away. To say so saves registers that are needed.
    let mut start = [0; N];
    if !MINIMA || K::SIGNED && BITS == 8 {
        for n in 0..N {
            start[n] = scales[n].start;
            products[n] = [kernel.begin(start[n]); P];
        }
    }
    for quad in 0..QUADS {
        for n in 0..N {
            for p in 0..P {
                products[n][p] = kernel.add::<BITS>(products[n][p], block.codes[p][quad], quads[n][quad]);
            }
        }
    }
    for n in 0..N {
        for p in 0..P {
            let total: f32x16<K::Simd> = kernel.total::<BITS>(products[n][p], start[n]).to_float();
            let factor = block.scales[p] * scales[n].scale;
            let mut sum = total.mul_add(factor, f32x16::from_slice(kernel.simd(), &sums[n][p]));
            if MINIMA {
                sum = block.minima[p].mul_add(scales[n].sum, sum);
            }
            sum.store_slice(&mut sums[n][p]);
        }
    }
}
